"""Opt-outs in the instant of a message, in small: what the benchmark finds out a hundred thousand times."""

import asyncio
import json
import sys

from bench.opt_outs import OptOut, phone_of, summary
from bench.processes import ROOT, environment


async def test_nothing_is_sent_after_an_acknowledged_opt_out() -> None:
    """Of 300, at random instants around the event, with the HTTP API in another process than the dispatcher. Some are
    sent before, and some are not sent: else nothing would have been tried."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.opt_outs", "--count", "300", "--spread-ms", "150"),
        cwd=ROOT,
        env=environment(),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(120):
        output, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    row = json.loads(output.decode().splitlines()[-1])
    assert (row["opt_outs"], row["sends_after_ack"]) == (300, 0)
    assert row["sends_before"] > 0
    assert row["not_sent"] > 0
    assert row["sends_before"] + row["not_sent"] == 300


def test_what_counts_as_after() -> None:
    """Read by the provider later than the answer to the opt-out was read by the client."""
    opt_outs = [OptOut(event_ns=0, asked_ns=1_000_000, answered_ns=3_000_000)] * 3
    taken = {phone_of(0): [2_000_000], phone_of(1): [3_000_000, 5_000_000]}
    row = summary(opt_outs, taken)
    assert (row["sends_before"], row["sends_after_ack"], row["not_sent"]) == (2, 1, 1)
    assert row["latest_after_ms"] == 2.0
