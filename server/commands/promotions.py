"""`nearcast promotions`: check promotions before they are used, tell what they do, and try them on a recording."""

import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import click
import msgspec

from nearcast.clock import SystemClock
from nearcast.errors import ConfigurationError, InputError
from server.commands.replay import AS_JSON, OUT, PATH, SAMPLES, SINCE, UNPROCESSED, UNTIL, WORLD, replay_and_compare
from server.commands.session import fail, settings_here

if TYPE_CHECKING:
    from offers.explain import Explanation

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_AS_JSON = click.option("--json", "as_json", is_flag=True, help="One JSON object, for programs.")


@click.group()
def promotions() -> None:
    """Promotions: check them, have them told in plain words, ask why not, and try them on a recording."""


@promotions.command()
@click.argument("files", type=_FILE, nargs=-1, required=True)
@_AS_JSON
def check(files: tuple[Path, ...], as_json: bool) -> None:
    """Check the promotions of FILES (world files in YAML or JSON; fences also as .geojson), together.

    Everything that is wrong is named at once, with file, line and field; then the exit code is 1. What is allowed but
    hardly meant (a promotion that can never be made, a text too long for an SMS) is a remark, and no fault.
    """
    from server.commands.promotion_files import check_files

    settings = settings_here()
    checked = check_files(files, now_ms=SystemClock().now_ms(), personal_prices=settings.personal_prices)
    if as_json:
        click.echo(
            msgspec.json.encode(
                {
                    "promotions": len(checked.world.promotions),
                    "problems": checked.problems,
                    "remarks": checked.remarks,
                    "unchecked": checked.unchecked,
                }
            )
        )
    else:
        for problem in checked.problems:
            click.echo(str(problem), err=True)
        for remark in checked.remarks:
            click.echo(f"remark: {remark}", err=True)
        for sentence in checked.unchecked:
            click.echo(f"not checked: {sentence}", err=True)
        if not checked.problems:
            click.echo(f"fine: {len(checked.world.promotions)} promotions, {len(checked.remarks)} remarks")
    sys.exit(1 if checked.problems else 0)


@promotions.command()
@click.argument("what", nargs=-1, required=True, metavar="FILE [ID]... | ID")
@click.option("--customer", help="Ask the running server why this customer doesn't get the promotion ID.")
@click.option("--store", help="With --customer: at this store.")
@click.option("--url", help="With --customer: the server's URL; else that of the settings here.")
@click.option("--key", help="With --customer: its admin key; else that of the settings here.")
@_AS_JSON
def explain(
    what: tuple[str, ...], customer: str | None, store: str | None, url: str | None, key: str | None, as_json: bool
) -> None:
    """Tell in plain words what promotions do; or, with --customer, what keeps one from a customer.

    FILE is a world file; without ids, all its promotions are told. With --customer the one argument is a promotion's
    id, and the answer is the running server's: by the gates that decide, about the customer as they are now.
    """
    if customer is not None:
        if len(what) != 1:
            raise click.UsageError("with --customer there is one argument: the promotion's id")
        body = _asked(customer, what[0], store, url, key)
        click.echo(body if as_json else "\n".join(_why_not(body)))
        return
    if store is not None or url is not None or key is not None:
        raise click.UsageError("--store, --url and --key belong to --customer")
    _tell(Path(what[0]), what[1:], as_json)


@promotions.command("what-if")
@click.argument("source", metavar="RECORDING|log")
@click.option(
    "--rules",
    type=PATH,
    multiple=True,
    required=True,
    help="World file, or folder of them, with the promotions to try.",
)
@WORLD
@OUT
@AS_JSON
@SAMPLES
@SINCE
@UNTIL
@UNPROCESSED
def what_if(
    source: str,
    rules: tuple[Path, ...],
    world: tuple[Path, ...],
    out: Path | None,
    as_json: bool,
    samples: int,
    since: int | None,
    until: int | None,
    unprocessed: bool,
) -> None:
    """Replay RECORDING (or the live log) under the current promotions and under others, and compare.

    The same as `nearcast replay --from RECORDING --rules PATH`. The promotions of --rules replace all current ones.
    Nothing is sent, and the live store is only read.
    """
    replay_and_compare(source, rules, world, out, as_json, samples, (since, until, unprocessed))


def _tell(file: Path, ids: tuple[str, ...], as_json: bool) -> None:
    from offers.telling import tell, what_stops
    from server.world_files import read_worlds

    if not file.is_file():
        fail(f"there is no file {file}")
    try:
        world = read_worlds([file])
    except InputError as error:
        fail(str(error))
    for name in set(ids) - {promotion.id for promotion in world.promotions}:
        fail(f"there is no promotion {name!r} in {file}")
    chosen = [promotion for promotion in world.promotions if not ids or promotion.id in ids]
    if as_json:
        click.echo(
            msgspec.json.encode(
                [
                    {"promotion": each.id, "name": each.name, "told": dict(tell(each, world))}
                    | {"stopped_by": dict(what_stops(each))}
                    for each in chosen
                ]
            )
        )
        return
    for promotion in chosen:
        click.echo(f"{promotion.name} ({promotion.id})")
        for heading, sentences in tell(promotion, world):
            click.echo(f"  {heading + ':':<12} {' '.join(sentences)}")
        click.echo("  What can stop it, in this order:")
        for reason, words in what_stops(promotion):
            click.echo(f"    {reason:<20} {words}")
        click.echo()


def _asked(customer: str, promotion: str, store: str | None, url: str | None, key: str | None) -> bytes:
    """The server's answer to "why not?"."""
    import httpx

    from server.credentials import secrets_for

    if url is None or key is None:
        settings = settings_here()
        url = url or settings.public_url or f"http://{settings.api_host}:{settings.api_port}"
        try:
            key = key or secrets_for(settings).api_keys.get("admin")
        except ConfigurationError as error:
            fail(str(error))
    asked = {"promotion": promotion} | ({"store": store} if store is not None else {})
    path = f"{url.rstrip('/')}/v1/customers/{quote(customer, safe='')}/why-not"
    try:
        answer = httpx.get(
            path, params=asked, headers={"Authorization": f"Bearer {key}"}, timeout=30.0, trust_env=False
        )
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        fail(f"the server at {url} can't be reached: {error or type(error).__name__}")
    if answer.status_code != 200:
        try:
            said = str(answer.json()["detail"])
        except (ValueError, KeyError, TypeError):
            said = f"HTTP {answer.status_code}"
        fail(said)
    return answer.content


def _why_not(body: bytes) -> Iterator[str]:
    """The server's answer for people."""
    from nearcast.reasons import in_words
    from offers.explain import Explanation

    try:
        told = msgspec.json.decode(body, type=Explanation)
    except msgspec.MsgspecError as error:
        fail(f"the server's answer can't be read (is it of another release?): {error}")
    yield f"{told.promotion} for {told.customer}: {told.summary}"
    situation = told.situation
    at = ", ".join(
        f"{name} {value}" for name, value in (("store", situation.store), ("fence", situation.fence)) if value
    )
    assumed = " (assumed: the customer is not there now)" if situation.assumed else ""
    yield f"Asked about: {situation.trigger}{f' at {at}' if at else ''}{assumed}, {_time(told.at_ms)}"
    yield ""
    yield "What the promotion asks of a moment:"
    for condition in told.conditions:
        mark = {True: "yes", False: "NO", None: "?"}[condition.holds]
        yield f"  {mark:<4} {condition.name:<16} {condition.detail}"
    for thing in told.things:
        yield ""
        yield f"The gates{f', for {thing.sku}' if thing.sku is not None else ''}:"
        for gate in thing.gates:
            yield f"  {'yes' if gate.passes else 'NO':<4} {gate.name:<20} {gate.detail}"
        if thing.stopped_by is not None:
            yield f"  \u2192 {in_words(thing.stopped_by)}"
    yield ""
    yield from _worth(told)
    if told.stopped_by:
        yield ""
        yield f"In the last {told.decisions} decisions about the customer:"
        for reason, count in sorted(told.stopped_by.items(), key=lambda item: (-item[1], item[0])):
            yield f"  {count:>4} \u00d7 {reason:<20} {'It won.' if reason == 'won' else in_words(reason)}"


def _worth(told: "Explanation") -> Iterator[str]:
    worth = told.worth
    yield (
        f"A redemption brings {worth.value_cents:g} cents; a message costs {worth.cost_cents:g}, of which "
        f"{worth.annoyance_cents:g} for {worth.ignored} ignored in a row."
    )
    if worth.worth_it_from is not None:
        yield f"It is worth it from a probability of {worth.worth_it_from:.4g} on."
    if told.held_out:
        yield "The customer is held out, so that the effect of offers can be measured."


def _time(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(sep=" ", timespec="seconds").replace("+00:00", " UTC")
