"""`python -m clients.demo`: the whole path on one machine, with one URL to look at.

Without `--seconds` it runs until Ctrl-C. The last line of standard output is one JSON object with everything counted;
the exit code is 0 if nothing went wrong.
"""

import asyncio
import json
import shutil
import signal
import sys
import tempfile
from pathlib import Path

import click

from clients.demo.driver import DemoFailed, Driver, Options
from nearcast.errors import NearcastError


@click.command()
@click.option("--seconds", type=click.FloatRange(min=1), help="How long the shoppers walk; without it, until Ctrl-C.")
@click.option(
    "--headless", is_flag=True, help="Nobody looks at the page: play the three phones and the tablet as well."
)
@click.option("--shoppers", default=40, show_default=True, type=click.IntRange(10, 400), help="How many walk.")
@click.option("--seed", default=7, show_default=True, help="Same seed: same households, walks and choices.")
@click.option(
    "--port", type=click.IntRange(1, 65535), help="Port of the HTTP API and the page; without it, a free one."
)
@click.option("--data-dir", type=click.Path(path_type=Path), help="Keep nearcast's data here, and find it next time.")
@click.option(
    "--time-lapse", default=6.0, show_default=True, type=click.FloatRange(1, 20), help="How much faster they walk."
)
@click.option("--keep", is_flag=True, help="Leave the temporary data directory behind, for a look at its log.")
def main(
    seconds: float | None,
    headless: bool,
    shoppers: int,
    seed: int,
    port: int | None,
    data_dir: Path | None,
    time_lapse: float,
    keep: bool,
) -> None:
    """Run nearcast with a sample retailer, real purchases and simulated shoppers."""
    folder = data_dir or Path(tempfile.mkdtemp(prefix="nearcast-demo-"))
    options = Options(folder, seconds, headless, shoppers, seed, port, time_lapse)
    try:
        code = asyncio.run(_run(options))
    finally:
        if data_dir is None and not keep:
            shutil.rmtree(folder, ignore_errors=True)
        elif keep:
            print(f"Data and log are in {folder}", file=sys.stderr)
    sys.exit(code)


async def _run(options: Options) -> int:
    driver = Driver(options, lambda line: print(line, flush=True))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, driver.stop)
    failure = ""
    try:
        summary = await driver.run()
    except (DemoFailed, NearcastError, OSError, ExceptionGroup) as error:
        failure = "; ".join(map(str, error.exceptions)) if isinstance(error, ExceptionGroup) else str(error)
        driver.measure.errors["demo_failed"] += 1
        summary = driver.measure.summary()
    if failure:
        print(f"The demo failed: {failure}", file=sys.stderr)
    print(json.dumps(summary))
    return 1 if failure or summary["errors"] else 0


if __name__ == "__main__":
    main()
