"""`nearcast dead-letters`: look at what could not be processed, send it through again, or throw it away."""

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar, cast

import click
import msgspec
from redis.asyncio import Redis

from nearcast.errors import Unavailable
from nearcast.topics import POSITIONS_KEPT_MS
from server.commands.session import fail, opened_store, run
from server.dead_letters import DeadLetters, Letter, LetterId, Outcome, Wanted
from server.settings import Settings

_AT_ONCE = 500
_SHOWN = 24
_KEPT_MIN = POSITIONS_KEPT_MS // 60_000
F = TypeVar("F", bound=Callable[..., Any])


@click.group("dead-letters")
def dead_letters() -> None:
    """Records that could not be processed: list, show, replay or drop them. Works with and without a running server."""


def _which(command: F) -> F:
    """The options by which letters are chosen."""
    for option in (
        click.option("--partition", type=click.IntRange(min=0), help="Only those of this partition."),
        click.option("--topic", help="Only those from this topic; `outbox` for what the dispatcher buried."),
        click.option("--reason", help="Only those with this reason."),
    ):
        command = option(command)
    return command


@dead_letters.command("list")
@_which
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True, help="Most letters to list.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object, for programs.")
def list_letters(reason: str | None, topic: str | None, partition: int | None, limit: int, as_json: bool) -> None:
    """How many there are by reason, and the oldest of them. Keys are customers' ids."""
    wanted = Wanted(reason=reason, topic=topic, partition=partition)

    async def work() -> None:
        async with opened_store() as (settings, redis, _):
            found, counts = await _collect(_letters(redis, settings, wanted), wanted, limit)
        if as_json:
            click.echo(msgspec.json.encode({"counts": counts, "letters": [_summary(letter) for letter in found]}))
        elif not counts:
            click.echo("no dead letters" + (" like that" if wanted != Wanted() else ""))
        else:
            click.echo("\n".join(_table(found, counts)))

    run(work())


@dead_letters.command()
@click.argument("letter")
@click.option("--json", "as_json", is_flag=True, help="One JSON object, for programs.")
def show(letter: str, as_json: bool) -> None:
    """All about one LETTER: what was wrong, where it came from, and its original bytes (hexadecimal if not text)."""

    async def work() -> None:
        async with opened_store() as (settings, redis, _):
            letters = DeadLetters(redis, settings.partitions)
            found = await letters.get(letters.parse(letter))
        shown, coding = _value(found)
        if as_json:
            click.echo(
                msgspec.json.encode(_summary(found) | {"detail": found.detail, "value": shown, "value_is": coding})
            )
            return
        arrived = "unknown" if found.arrived_ms is None else _time(found.arrived_ms)
        for name, value in (
            ("id", str(found.id)),
            ("reason", found.reason),
            ("detail", found.detail),
            ("topic", found.topic),
            ("position", found.position),
            ("key", found.key or "(none)"),
            ("arrived", arrived),
            ("buried", _time(found.id.buried_ms)),
            (f"value ({len(found.value)} bytes, {coding})", shown)
            if found.cut_ms is None
            else ("value", f"cut at {_time(found.cut_ms)}: positions are kept for {_KEPT_MIN} minutes"),
        ):
            click.echo(f"{name}: {value}")

    run(work())


@dead_letters.command()
@click.argument("letters", nargs=-1)
@_which
@click.option("--all", "every", is_flag=True, help="All there are.")
def replay(letters: tuple[str, ...], reason: str | None, topic: str | None, partition: int | None, every: bool) -> None:
    """Send LETTERS, or those chosen by options, through again: the original bytes, to the original topic.

    A letter is removed once the log has its record. If that is interrupted, replay again: an event that arrives twice
    counts once. A record that still can't be processed becomes a dead letter again.
    """
    # Imported late: it brings all of the server.
    from server.core import log_of

    wanted = _checked(letters, Wanted(reason=reason, topic=topic, partition=partition), every)

    async def work() -> None:
        outcomes: Counter[Outcome] = Counter()
        async with opened_store() as (settings, redis, url):
            shelf = _letters(redis, settings, wanted)
            chosen = await _chosen(shelf, letters, wanted)
            log = log_of(settings, url)
            try:
                await log.start()
                for some in _in_steps(chosen, "replaying"):
                    there = await shelf.read(some)
                    outcomes["gone"] += len(some) - len(there)
                    outcomes.update((await shelf.replay(there, log)).values())
            except Unavailable as error:
                raise Unavailable(f"{error}; {outcomes['replayed']} of {len(chosen)} letters were replayed") from error
            finally:
                await log.stop()
        click.echo(f"replayed {outcomes['replayed']} of {len(chosen)} dead letters")
        if outcomes["gone"]:
            click.echo(f"{outcomes['gone']} were replayed or dropped by somebody else meanwhile")
        stay = []
        if outcomes["no such topic"]:
            stay.append(f"{outcomes['no such topic']} are of topics that nearcast does not read")
        if outcomes["cut"]:
            stay.append(f"{outcomes['cut']} have lost their positions, which are kept for {_KEPT_MIN} minutes")
        if outcomes["too large"]:
            stay.append(f"{outcomes['too large']} are larger than the log carries")
        if stay:
            fail(f"{' and '.join(stay)}; they stay, and `drop` removes them")

    run(work())


@dead_letters.command()
@click.argument("letters", nargs=-1)
@_which
@click.option("--all", "every", is_flag=True, help="All there are.")
@click.option("--yes", is_flag=True, help="Needed: what is dropped is gone.")
def drop(
    letters: tuple[str, ...], reason: str | None, topic: str | None, partition: int | None, every: bool, yes: bool
) -> None:
    """Throw LETTERS, or those chosen by options, away for good."""
    wanted = _checked(letters, Wanted(reason=reason, topic=topic, partition=partition), every)

    async def work() -> None:
        dropped = 0
        async with opened_store() as (settings, redis, _):
            shelf = _letters(redis, settings, wanted)
            chosen = await _chosen(shelf, letters, wanted)
            if not yes:
                fail(f"{len(chosen)} dead letters would be gone for good; say --yes to drop them")
            for some in _in_steps(chosen, "dropping"):
                dropped += await shelf.drop(some)
        click.echo(f"dropped {dropped} of {len(chosen)} dead letters")

    run(work())


def _checked(letters: Sequence[str], wanted: Wanted, every: bool) -> Wanted:
    """Letters are named, or chosen by options, or all of them: a slip must not mean all."""
    if bool(letters) + (wanted != Wanted()) + every != 1:
        fail("say which dead letters: ids, or --reason, --topic, --partition, or --all")
    return wanted


def _letters(redis: Redis, settings: Settings, wanted: Wanted) -> DeadLetters:
    if wanted.partition is not None and wanted.partition >= settings.partitions:
        fail(f"--partition {wanted.partition}: there are partitions 0 to {settings.partitions - 1} only")
    return DeadLetters(redis, settings.partitions)


async def _collect(shelf: DeadLetters, wanted: Wanted, limit: int) -> tuple[list[Letter], Counter[str]]:
    """The oldest letters, and how many there are of each reason."""
    found: list[Letter] = []
    counts: Counter[str] = Counter()
    async for letter in shelf.every(wanted):
        counts[letter.reason] += 1
        found.append(letter)
        if len(found) >= 2 * limit:
            found = _oldest(found, limit)
    return _oldest(found, limit), counts


def _oldest(letters: list[Letter], limit: int) -> list[Letter]:
    return sorted(letters, key=lambda letter: letter.id.buried_ms)[:limit]


async def _chosen(shelf: DeadLetters, names: Sequence[str], wanted: Wanted) -> list[LetterId]:
    """Those there are now. One that is buried again while it is replayed is not among them."""
    if names:
        return [(await shelf.get(letter)).id for letter in dict.fromkeys(shelf.parse(name) for name in names)]
    chosen = [letter.id async for letter in shelf.every(wanted)]
    if not chosen:
        fail("there are no dead letters" + (" like that" if wanted != Wanted() else ""))
    return chosen


def _in_steps(letters: Sequence[LetterId], doing: str) -> Iterator[Sequence[LetterId]]:
    """The letters some at a time, with a progress bar if there are many."""
    hidden = len(letters) <= _AT_ONCE or not sys.stderr.isatty()
    with click.progressbar(length=len(letters), label=doing, file=sys.stderr, hidden=hidden) as bar:
        for start in range(0, len(letters), _AT_ONCE):
            yield letters[start : start + _AT_ONCE]
            bar.update(min(_AT_ONCE, len(letters) - start))


def _table(letters: Sequence[Letter], counts: Counter[str]) -> Iterator[str]:
    for reason, number in counts.most_common():
        yield f"{number:>7}  {reason}"
    yield ""
    rows = [("PARTITION", "ID", "REASON", "TOPIC", "POSITION", "KEY", "AGE")]
    rows += [
        (
            str(letter.id.partition),
            str(letter.id),
            letter.reason,
            letter.topic,
            letter.position,
            _short(letter.key) or "-",
            _age(letter.id.buried_ms),
        )
        for letter in letters
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
    if counts.total() > len(letters):
        yield f"... and {counts.total() - len(letters)} newer; --limit shows more"


def _summary(letter: Letter) -> dict[str, object]:
    fields = cast("dict[str, object]", msgspec.structs.asdict(letter))
    shown = {name: value for name, value in fields.items() if name not in ("id", "detail", "value")}
    return {"id": str(letter.id), "partition": letter.id.partition, "buried_ms": letter.id.buried_ms, **shown}


def _value(letter: Letter) -> tuple[str, str]:
    """The original bytes to look at, and how they are written."""
    try:
        return letter.value.decode(), "text"
    except UnicodeDecodeError:
        return letter.value.hex(), "hex"


def _short(key: str) -> str:
    shown = "".join(letter if letter.isprintable() else "?" for letter in key)
    return shown if len(shown) <= _SHOWN else f"{shown[: _SHOWN - 3]}..."


def _age(then_ms: int) -> str:
    seconds = max(0, round(time.time() - then_ms / 1000))
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"


def _time(ms: int) -> str:
    return f"{time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime(ms / 1000))}.{ms % 1000:03d} UTC"
