"""`nearcast evaluate-policy` and `nearcast evaluate-uplift`: what a log of decisions teaches.

What they need (pandas, pyarrow, scikit-learn) is imported only when they run: the server does without.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from nearcast.errors import InputError, NearcastError
from server.commands.session import fail

if TYPE_CHECKING:
    from models.scorer import Scorer
    from models.training.logged import Floats, Logged
    from models.training.policy_value import Estimate, PolicyValue
    from models.training.uplift import Lift, UpliftReport

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_SEED = click.option("--seed", default=7, show_default=True, help="Of resampling and folds: same seed, same figures.")
_JSON = click.option("--json", "as_json", is_flag=True, help="One JSON object, for programs.")
_ROWS_AT_ONCE = 100_000
_NAMES = {"ips": "IPS", "snips": "SNIPS", "dm": "model alone", "dr": "doubly robust"}


@click.command("evaluate-policy")
@click.argument("log", type=_FILE)
@click.option(
    "--model",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    required=True,
    help="Folder of the model to judge.",
)
@click.option("--max-weight", type=click.FloatRange(min=1), default=100.0, show_default=True, help="Cut weights to it.")
@_SEED
@_JSON
def evaluate_policy(log: Path, model: Path, max_weight: float, seed: int, as_json: bool) -> None:
    """What would the model have earned in the decisions of LOG, in place of what decided them?

    LOG is a file of `nearcast export decisions`. The model ranks as the server does: P x value - cost, or nothing.
    Needs NEARCAST_EXPLORATION to have been above 0, and the `train` extra.
    """
    with _failing():
        from models.scorer import Scorer
        from models.training.logged import read_choices
        from models.training.policy_value import policy_value, predicted_cents

        scorer = Scorer.load(model)
        choices = read_choices(log)
        if not len(choices.chosen):
            raise InputError("nothing_to_judge", f"no decision can be used: {_counts(choices.left_out)}", str(log))
        found = policy_value(
            choices, _policy_of(choices, scorer), predicted_cents(choices, seed), max_weight=max_weight, seed=seed
        )
    if as_json:
        about = {"model": scorer.version, "left_out": dict(choices.left_out)}
        click.echo(msgspec.json.encode(about | msgspec.to_builtins(found)))
        return
    click.echo("\n".join(_value_table(found, scorer.version, choices)))
    for warning in _warnings(found):
        click.echo(f"warning: {warning}", err=True)


@click.command("evaluate-uplift")
@click.argument("log", type=_FILE)
@click.option(
    "--outcome",
    default="purchased_after",
    show_default=True,
    help="Column that says of each decision whether the outcome happened, offer or not.",
)
@click.option("--promotion", help="Only moments that were worth this promotion.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="SVG file for the Qini curves.")
@_SEED
@_JSON
def evaluate_uplift(log: Path, outcome: str, promotion: str | None, out: Path | None, seed: int, as_json: bool) -> None:
    """What did the offers of LOG change, against the customers who were held out of them?

    LOG is a file of `nearcast export decisions`. Needs a hold-out (NEARCAST_HOLDOUT, or `holdout` of a promotion), and
    the `train` extra.
    """
    with _failing():
        from models.training.uplift import read_units, uplift

        found = uplift(read_units(log, outcome, promotion), seed)
        if out is not None:
            _draw(found, outcome, out)
    if as_json:
        click.echo(msgspec.json.encode(found))
        return
    click.echo("\n".join(_uplift_table(found, outcome)))
    if out is not None and found.rankings:
        click.echo(f"plot: {out}")


@contextmanager
def _failing() -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        fail(f"this needs the train extra (pip install 'nearcast[train]'): {error}")
    except NearcastError as error:
        fail(str(error))


def _policy_of(log: "Logged", scorer: "Scorer") -> "Floats":
    """The probability of each of a log's actions if `scorer` had served: 1 for the best of a decision."""
    import numpy as np

    from models.features.sets import SETS
    from offers.choice import Option, choose

    columns = SETS["redeem"].columns
    missing = [name for name in columns if name not in log.features]
    if missing:
        raise InputError("other_features", f"the log lacks the model's inputs {', '.join(missing)}")
    offers = np.flatnonzero(~log.is_nothing)
    order = [log.features.index(name) for name in columns]
    scores = np.zeros(len(log.decision))
    for first in range(0, len(offers), _ROWS_AT_ONCE):
        some = offers[first : first + _ROWS_AT_ONCE]
        scores[some] = scorer.score(log.rows[some][:, order].astype(np.float32))
    expected = scores * log.value_cents - log.cost_cents
    policy = np.zeros(len(log.decision))
    starts = np.searchsorted(log.decision, np.arange(len(log.chosen) + 1))
    for first, end in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        # Nothing comes first, then the offers in the order in which the server ranks them.
        best = choose([Option(cents) for cents in expected[first + 1 : end].tolist()], 0.0, (0.0, 0.0)).chosen
        policy[first if best is None else first + 1 + best] = 1.0
    return policy


def _value_table(found: "PolicyValue", version: str, log: "Logged") -> Iterator[str]:
    yield f"{found.decisions} decisions about {found.customers} customers"
    if log.left_out:
        yield f"left out: {_counts(log.left_out)}"
    yield ""
    yield f"{'cents per decision':24}{'value':>8}  {'95 % interval':>18}  {'gain':>8}  {'95 % interval':>18}"
    yield _value_row("as logged", found.logged)
    yield f"{'nothing at all':24}{0:8.3f}"
    yield version
    for name, label in _NAMES.items():
        yield _value_row(f"  {label}", found.estimates[name], gain=True)
    yield ""
    yield f"decided as logged: {found.agreement:.1%} of the decisions; never tried: {found.untried:.1%}"
    yield (
        f"weights: mean {found.mean_weight:.3f}, largest {found.largest_weight:.1f}, cut {found.clipped:.1%}; worth "
        f"{found.effective_decisions:.0f} decisions"
    )


def _value_row(label: str, estimate: "Estimate", *, gain: bool = False) -> str:
    row = f"{label:24}{estimate.cents:8.3f}  {_between(estimate.interval):>18}"
    return f"{row}  {estimate.gain_cents:+8.3f}  {_between(estimate.gain_interval):>18}" if gain else row


def _warnings(found: "PolicyValue") -> Iterator[str]:
    if found.untried > 0:
        yield (
            f"{found.untried:.1%} of what the model would do was never possible in the log: IPS and SNIPS know nothing "
            "of it, and the others only believe. Set NEARCAST_EXPLORATION above 0, and export again later"
        )
    if found.effective_decisions < 100:
        yield f"the estimate rests on what {found.effective_decisions:.0f} decisions would tell: too few to go by"
    if found.clipped > 0.01:
        yield f"{found.clipped:.1%} of the weights were cut: IPS, SNIPS and DR are biased towards less"


def _uplift_table(found: "UpliftReport", outcome: str) -> Iterator[str]:
    yield f"{outcome}: {found.customers} customers, each by their first moment that was worth an offer"
    if found.left_out:
        yield f"left out: {_counts(found.left_out)}"
    yield ""
    yield f"{'':24}{'offered':>9}{'rate':>8}{'held out':>10}{'rate':>8}{'lift':>8}  95 % interval"
    for name, lift in (("all", found.overall), *found.promotions.items()):
        yield _lift_row(name, lift)
    yield ""
    if not found.rankings:
        yield "no ranking by uplift: too few customers or outcomes to learn one from, or no inputs in the log"
        return
    yield f"{'ranked by':24}{'Qini':>9}  {'95 % interval':>18}  {'AUUC':>9}  {'95 % interval':>18}"
    for name, ranking in found.rankings.items():
        yield (
            f"{name:24}{ranking.qini:9.4f}  {_between(ranking.qini_interval, 4):>18}  {ranking.auuc:9.4f}  "
            f"{_between(ranking.auuc_interval, 4):>18}"
        )
    yield f"{'chance':24}{0:9.4f}  {'':18}  {found.random_auuc:9.4f}"


def _lift_row(name: str, lift: "Lift") -> str:
    low, high = lift.interval
    return (
        f"{name[:23]:24}{lift.offered:9}{lift.rate_offered:8.1%}{lift.held_out:10}{lift.rate_held_out:8.1%}"
        f"{lift.lift:+8.1%}  {low:+.1%} to {high:+.1%}"
    )


def _draw(found: "UpliftReport", outcome: str, out: Path) -> None:
    import numpy as np

    from models.training.plots import Kind, Series, gains
    from models.training.report_figures import Curve

    if not found.rankings:
        click.echo("note: no plot: there is no ranking to draw", err=True)
        return
    looks: Sequence[Kind] = ("model", "second", "other")
    series = [
        Series(name, Curve(np.array(ranking.shares), np.array(ranking.gains)), look)
        for (name, ranking), look in zip(found.rankings.items(), looks, strict=True)
    ]
    end = next(iter(found.rankings.values())).gains[-1]
    series.append(Series("chance", Curve(np.array([0.0, 1.0]), np.array([0.0, end])), "guide"))
    shows = f"Qini curves of {outcome}: what is gained by offering to the first so many of a ranking"
    try:
        out.write_text(gains("qini", shows, series).file(), encoding="utf-8")
    except OSError as error:
        raise InputError("unwritable_file", f"can't be written: {error.strerror}", str(out)) from None


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} ({why})" for why, count in counts.items()) or "it holds none"


def _between(interval: tuple[float, float], digits: int = 3) -> str:
    low, high = interval
    return f"{low:.{digits}f} to {high:.{digits}f}"
