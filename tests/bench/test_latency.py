"""The benchmark of the whole path runs, in small; its stages add up, and its trace and plot say the same."""

import asyncio
import itertools
import json
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from bench.latency import STAGES, joined, summary
from bench.latency_plot import waterfall
from bench.latency_worker import Committed, Event, Notes, Work
from bench.processes import ROOT, environment
from nearcast import topics

SECOND_NS = 1_000_000_000


async def test_a_small_run_on_streams_ends_with_all_its_figures(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.latency", "--log", "streams", "--customers", "300", "--rate", "400"),
        *("--seconds", "3", "--warm-up-seconds", "1", "--stores", "10", "--fences", "200", "--out", str(tmp_path)),
        cwd=ROOT,
        env=environment(),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(240):
        output, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    row = json.loads(output.decode().splitlines()[-1])
    assert row["bench"] == "latency"
    assert row["events"] == 1_200
    assert row["pushes"] > 0
    assert row["gaps"] == row["lost_connections"] == 0
    assert 0 < row["p50_ms"] <= row["p99_ms"]
    for figures in ("stage_p50_ms", "stage_p99_ms", "stage_mean_ms"):
        assert tuple(row[figures]) == STAGES
        assert all(value >= 0 for value in row[figures].values())
    assert sum(row["stage_mean_ms"].values()) == pytest.approx(row["mean_ms"], abs=0.05)
    # None of them is left out, whatever the machine.
    for stage in ("match", "score", "commit", "dispatch", "socket"):
        assert row["stage_mean_ms"][stage] > 0
    traces: dict[str, list[dict[str, object]]] = {}
    for line in (tmp_path / "latency.jsonl").read_text().splitlines():
        span = json.loads(line)
        traces.setdefault(span["traceId"], []).append(span)
    assert len(traces) == row["pushes"]
    for whole, *stages in traces.values():
        assert [span["name"] for span in (whole, *stages)] == ["push", *STAGES]
        assert {span["parentSpanId"] for span in stages} == {whole["spanId"]}
        assert whole["startTimeUnixNano"] == stages[0]["startTimeUnixNano"]
        assert whole["endTimeUnixNano"] == stages[-1]["endTimeUnixNano"]
        assert all(a["endTimeUnixNano"] == b["startTimeUnixNano"] for a, b in itertools.pairwise(stages))
    drawn = ElementTree.parse(tmp_path / "latency.svg")
    assert all(stage in {element.text for element in drawn.iter()} for stage in STAGES)


def test_what_each_process_saw_is_put_together() -> None:
    """By position in its place; what another process overtook ends when that one began."""
    place = f"{topics.LOCATIONS} 2"
    at = 5 * SECOND_NS
    produced = {place: np.array([[10, 11, 12], [0, at, at + 100], [50, at + 40, at + 1_000]])}
    engine = Notes(
        events=[
            Event("e1", topics.LOCATIONS, 2, "10", 0),
            Event("e2", topics.LOCATIONS, 2, "11", 0),
            Event("e3", topics.LOCATIONS, 2, "12", 1),
            Event("e4", topics.CARTS, 2, "11", 1),
        ],
        batches=[Work(at + 60, at + 70, at + 75), Work(at + 160, at + 190, at + 195)],
        commits=[Committed(topics.LOCATIONS, 2, "11", at + 90), Committed(topics.LOCATIONS, 2, "12", at + 300)],
        publishing_ns={},
    )
    dispatcher = Notes([], [], [], {"m1": 100, "m2": at + 120, "m3": at + 250, "m4": at + 1})
    seen = {
        "events": np.array(["e1", "e2", "e3", "e4", "timer"]),
        "messages": np.array(["m1", "m2", "m3", "m4", "m5"]),
        "seen_ns": np.array([150, at + 200, at + 400, at + 2, at + 3]),
    }
    first, second = joined(produced, [dispatcher, engine], seen)
    # Of e1 there is nothing: the load was not steady yet. Carts and timers are no location events.
    assert first == ("e2", "m2", tuple(at + ns for ns in (0, 40, 60, 70, 75, 90, 120, 200)))
    # The engine had it before the log had confirmed it; it was published before the engine knew of its commit.
    assert second == ("e3", "m3", tuple(at + ns for ns in (100, 160, 160, 190, 195, 250, 250, 400)))
    row = summary([first, second])
    assert row["stage_mean_ms"]["socket"] == pytest.approx((80 + 150) / 2 / 1e6, abs=1e-3)
    assert row["mean_ms"] == pytest.approx((200 + 300) / 2 / 1e6, abs=1e-2)


def test_a_bar_is_as_long_as_its_mean() -> None:
    times_ms = np.array([[0.0, 1, 2, 4, 5, 9, 12, 20], [0.0, 3, 4, 8, 9, 13, 18, 40]])
    drawn = ElementTree.fromstring(waterfall("A title", STAGES, times_ms))
    bars = [element for element in drawn.iter() if element.tag.endswith("rect") and element.get("fill") == "#0b6e4f"]
    means = [*np.diff(times_ms, axis=1).mean(axis=0), 30.0]
    widths = [float(bar.get("width", 0)) for bar in bars]
    assert len(widths) == len(STAGES) + 1
    assert [width / widths[-1] for width in widths] == pytest.approx([mean / 30 for mean in means], abs=0.01)
