"""`nearcast train` and `nearcast evaluate`: models from a shop's history, and a report on how good one is.

What they need (pandas, scikit-learn, matplotlib) is imported only when they run: the server does without.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self, cast, get_args

import click

from models.features.base import Kind
from nearcast.errors import NearcastError
from server.commands.session import fail

if TYPE_CHECKING:
    from click._termui_impl import ProgressBar

_KINDS = {kind.replace("_", "-"): cast("Kind", kind) for kind in get_args(Kind)}
_FOLDER = click.Path(file_okay=False, path_type=Path)
_DATA = click.option(
    "--data",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder with the history's parquet files. Without it, the public Complete Journey.",
)
_HOUSEHOLDS = click.option(
    "--households", type=click.IntRange(min=1), help="Only so many customers, drawn by the seed: for quick trials."
)

_CACHE = click.option(
    "--cache",
    type=_FOLDER,
    help="Folder that keeps extracted rows: what was interrupted goes on there, and the next run need not extract.",
)


@click.command()
@click.argument("kind", type=click.Choice([*_KINDS, "all"]), default="redeem")
@click.option("--out", type=_FOLDER, required=True, help="Folder for the model; for `all`, of one folder for each.")
@click.option("--seed", default=7, show_default=True, help="Same seed and data, same model.")
@_HOUSEHOLDS
@_DATA
@_CACHE
def train(kind: str, out: Path, seed: int, households: int | None, data: Path | None, cache: Path | None) -> None:
    """Train a model on a purchase history, export it to ONNX and check the export.

    KIND is redeem (will this customer redeem this promotion; the default), buy-next (what will they buy within a
    week), channel (which channel do they react to), or all of them. Needs the `train` extra.
    """
    with _failing():
        from models.training.train import TASKS, run

        wanted = list(TASKS) if kind == "all" else [_KINDS[kind]]
        for one in wanted:
            if one not in TASKS:
                fail(f"there is no history to train a model of kind {kind} from")
            with _Stages(f"{one} " if kind == "all" else "") as stages:
                folder = out / one if kind == "all" else out
                trained = run(folder, seed, stages, kind=one, households=households, data=data, cache=cache)
            click.echo(trained.summary())


@click.command()
@click.argument("model", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--kind", type=click.Choice(list(_KINDS)), help="Refuse a model of another kind.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("report.html"),
    show_default=True,
    help="The report: .html is one file, .md has its plots in a folder beside it.",
)
@click.option("--seed", default=7, show_default=True, help="Of intervals and shuffles: same seed, same report.")
@_HOUSEHOLDS
@_DATA
@_CACHE
@click.option("--other-data", is_flag=True, help="Judge a model that was trained on other data than --data.")
def evaluate(
    model: Path,
    kind: str | None,
    out: Path,
    seed: int,
    households: int | None,
    data: Path | None,
    cache: Path | None,
    other_data: bool,
) -> None:
    """Judge the model in the folder MODEL on later history than it was trained on, and write a report with plots.

    Against baselines: ranking, calibration, lift, by group and week, what its features do, drift. Needs the `train`
    extra.
    """
    with _failing():
        from models.training.report import report, summary

        with _Stages("") as stages:
            found = report(
                model,
                out,
                seed,
                stages,
                kind=_KINDS[kind] if kind else None,
                households=households,
                data=data,
                cache=cache,
                other_data=other_data,
            )
        click.echo(summary(found))
        click.echo(f"report: {out}")


@contextmanager
def _failing() -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        fail(f"this needs the train extra (pip install 'nearcast[train]'): {error}")
    except (NearcastError, OSError) as error:
        fail(str(error))


class _Stages:
    """A progress bar on stderr for each stage, one under the other."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._stage = ""
        self._bar: ProgressBar[int] | None = None

    def __call__(self, stage: str, fraction: float) -> None:
        if self._bar is None or stage != self._stage:
            self._close()
            self._stage = stage
            self._bar = click.progressbar(length=1_000, label=f"{self._prefix}{stage:10}", file=sys.stderr)
            self._bar.__enter__()
        self._bar.update(round(fraction * 1_000) - self._bar.pos)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.render_finish()
            self._bar = None
