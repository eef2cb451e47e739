"""`nearcast record` and `nearcast replay`: a stretch of the log as a file, and what other rules would have decided."""

import re
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import click

from nearcast.clock import SystemClock
from server.commands.session import run

if TYPE_CHECKING:
    from server.replay.report import Report

_AGO = re.compile(r"(\d{1,9})([smhd])")
_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


class Moment(click.ParamType[int]):
    """A time, as ms since the Unix epoch."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        ago = _AGO.fullmatch(str(value))
        if ago is not None:
            return SystemClock().now_ms() - int(ago[1]) * _SECONDS[ago[2]] * 1000
        try:
            time = datetime.fromisoformat(str(value))
            return round((time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp() * 1000)
        except (ValueError, OverflowError):
            self.fail(
                f"{value!r} is neither like 2026-05-01T09:00 (UTC, unless it says +02:00) nor like 90m", param, ctx
            )


SINCE = click.option(
    "--since", type=Moment(), help="Only what arrived from then on: 2026-05-01T09:00 (UTC), or 90m ago."
)
UNTIL = click.option("--until", type=Moment(), help="Until before this arrival.")
UNPROCESSED = click.option("--unprocessed", is_flag=True, help="Also what the engine has not worked on yet.")
PATH = click.Path(path_type=Path)
_FILE = click.Path(dir_okay=False, path_type=Path)
WORLD = click.option(
    "--world", type=_FILE, multiple=True, help="World file in place of the recorded world. Repeatable."
)
OUT = click.option("--out", type=_FILE, help="File to write the report to; else it is printed.")
AS_JSON = click.option("--json", "as_json", is_flag=True, help="The report as JSON.")
SAMPLES = click.option(
    "--samples", type=click.IntRange(min=0), default=10, show_default=True, help="Differences to show."
)


@click.command()
@click.option("--out", type=_FILE, required=True, help="File to make; packed if its name ends in .gz.")
@SINCE
@UNTIL
@UNPROCESSED
def record(out: Path, since: int | None, until: int | None, unprocessed: bool) -> None:
    """Copy a stretch of the event log into a file for `nearcast replay`.

    The file also takes the world as it is now, and what was decided. Reading changes nothing and can be done beside a
    running server. The file holds PERSONAL DATA (ids, positions, purchases, contact points): only you can read it, and
    an erasure does not reach it. Delete it when you are done.
    """
    from server.replay.live import Stretch, open_live

    async def work() -> None:
        async with open_live() as live:
            with _bar() as bar:
                records = await live.record(out, Stretch(since, until, unprocessed), _counting(bar, "recording"))
        click.echo(f"{records} records in {out}; they are personal data")

    run(work())


@click.command()
@click.option("--from", "source", required=True, metavar="FILE|log", help="A recording, or `log` for the live log.")
@click.option("--rules", type=PATH, multiple=True, help="World file, or folder of them, with the promotions to try.")
@WORLD
@OUT
@AS_JSON
@SAMPLES
@SINCE
@UNTIL
@UNPROCESSED
def replay(
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
    """Run a recorded log through the engine again, and say which decisions differ. Nothing is sent.

    With --rules: what those promotions would have decided instead of the current ones. Without: whether the current
    rules decide what was decided live. The settings (quiet hours, caps, model) are those in force here. Works in a
    private store of its own; the live one is only read, and only for `--from log` or if the recording has no world.
    """
    replay_and_compare(source, rules, world, out, as_json, samples, (since, until, unprocessed))


def replay_and_compare(
    source: str,
    rules: tuple[Path, ...],
    world: tuple[Path, ...],
    out: Path | None,
    as_json: bool,
    samples: int,
    stretch: tuple[int | None, int | None, bool],
) -> None:
    """What both spellings of the command do: `nearcast replay`, and `nearcast promotions what-if`."""
    from server import settings as settings_module
    from server.replay import report as reports
    from server.replay.live import Stretch, open_live
    from server.replay.recording import Recording, private_file
    from server.replay.whatif import what_if

    if source != "log" and stretch != (None, None, False):
        raise click.UsageError("--since, --until and --unprocessed choose a stretch of the log: they need --from log")

    async def work() -> "Report":
        settings = settings_module.load()
        with TemporaryDirectory(prefix="nearcast-recording-") as folder, _bar() as bar:
            file = Path(source)
            if source == "log":
                file = Path(folder, "log.gz")
                async with open_live() as live:
                    await live.record(file, Stretch(*stretch), _counting(bar, "reading"))

            def progress(name: str, done: int, of: int) -> None:
                bar.label, bar.length = name, of
                bar.update(done - bar.pos)

            return await what_if(
                Recording(file), settings, world=world, rules=rules, samples=samples, progress=progress
            )

    async def write() -> None:
        # Before the work: it may take long, and should not be for nothing.
        with private_file(out) if out is not None else nullcontext(sys.stdout.buffer) as output:
            report = await work()
            output.write(reports.as_json(report) if as_json else reports.as_text(report).encode())

    run(write())


def _bar() -> AbstractContextManager[Any]:
    return click.progressbar(length=1, file=sys.stderr, show_pos=True, show_eta=False, show_percent=False)


def _counting(bar: Any, label: str) -> Callable[[int], None]:
    def progress(records: int) -> None:
        bar.label, bar.length = label, records
        bar.update(records - bar.pos)

    return progress
