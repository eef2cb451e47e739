"""The engine's benchmark runs, in small, and says what it measured in its last line."""

import asyncio
import json
import sys

from bench.processes import ROOT, environment


async def test_a_small_run_on_streams_ends_with_all_its_figures() -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.engine", "--log", "streams", "--events", "2000", "--customers", "300"),
        *("--stores", "5", "--fences", "100", "--rates", "400", "--seconds", "2"),
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
    streams = row["logs"]["streams"]
    # Every event that was filled in was folded, and none of them was malformed, late or from the future.
    assert streams["counters"]["nearcast_events"] >= 2_000
    assert streams["counters"]["nearcast_dead_letters"] == 0
    assert streams["counters"]["nearcast_transitions"] > 0
    assert {"decode", "match", "fold", "commit"} <= streams["stage_us"].keys()
    assert row["events_per_s"] > 0
    assert row["events_per_cpu_s"] > 0
    assert row["floor_ratio"] > 0
    assert row["quix_ratio"] is None
    assert 0 < row["p50_ms"]["400"] <= row["p99_ms"]["400"]
    # Of two seconds of load, the second one.
    assert streams["latency"]["400"]["events"] >= 300
