"""The benchmark of fences runs, in small, agrees with its oracles, and says what it measured in its last line."""

import asyncio
import json
import sys
from random import Random

import numpy as np

from bench.geofence import Traffic, Truth, city_fences
from bench.processes import ROOT, environment
from geofence.index import FenceIndex
from nearcast.world import Circle, Polygon


async def test_a_small_run_ends_with_all_its_figures() -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.geofence", "--fences", "100,400", "--seconds", "0.2"),
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
    assert row["agreement"] == 1.0
    assert [world["fences"] for world in row["worlds"]] == [100, 400]
    for figure in ("points_per_s", "vs_strtree_100", "vs_h3_floor", "change_ms", "bytes_per_fence"):
        assert row[figure] > 0
    # The run had no such worlds.
    assert row["vs_strtree_100k"] is row["build_s_100k"] is row["growth_100_to_100k"] is None


def test_the_city_is_as_it_says() -> None:
    """Circles and polygons, some with holes; one fix in ten is near a store, and most of those are in a fence."""
    fences, stores = city_fences(400, Random(7))
    polygons = [item.geometry for item in fences if isinstance(item.geometry, Polygon)]
    assert sum(isinstance(item.geometry, Circle) for item in fences) == 20 * 13
    assert len(polygons) == 20 * 7
    assert sum(len(polygon.coordinates) > 1 for polygon in polygons) == 20 * 4
    batch = Traffic(stores, np.random.default_rng(7)).batch()
    hits = FenceIndex.build(fences).match(batch.lats, batch.lngs)
    assert 60 < sum(map(bool, hits)) <= 100


def test_the_truth_would_notice() -> None:
    """An index of slightly other fences does not agree with it."""
    fences, stores = city_fences(40, Random(7))
    batch = Traffic(stores, np.random.default_rng(7)).batch()
    truth = Truth(fences).of(batch)
    index = FenceIndex.build(fences[1:])
    pairs = [fix << 32 | (n + 1) for fix, found in enumerate(index.match(batch.lats, batch.lngs)) for n in found]
    assert pairs != truth.tolist()
    assert set(pairs) == {pair for pair in truth.tolist() if pair & 0xFFFFFFFF}
