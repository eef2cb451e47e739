"""What tracking costs, one processor, no I/O.

    python -m bench.parts [--stores 500]

Matching and scoring have benchmarks of their own: `bench.geofence`, `bench.scoring`.
"""

import argparse
import json
import random
import time
from collections.abc import Callable

import numpy as np

from bench.city import city
from geofence.index import FenceIndex
from geofence.tracker import track
from nearcast.customer import Presence
from nearcast.events import Location


def best_us(call: Callable[[], object], per: int, repeats: int = 30) -> float:
    """The quickest of several runs, in microseconds per item: the others were disturbed."""
    taken = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        taken.append(time.perf_counter() - started)
    return min(taken) / per * 1e6


def tracking(index: FenceIndex, lat: float, lng: float) -> dict[str, float]:
    """A fix nowhere, one that enters the fences at a store's middle, and one that stays in them."""
    lats, lngs = np.array([lat, 0.0]), np.array([lng, 0.0])
    inside, nowhere = ([index.fences[ordinal] for ordinal in hits] for hits in index.match(lats, lngs))

    def fix(ts: int) -> Location:
        return Location(id="e", uid="c", ts=ts, lat=lat, lng=lng, accuracy_m=5.0)

    def enter() -> None:
        for _ in range(500):
            track(Presence(), fix(1), inside, index)

    def stay() -> None:
        presence = Presence()
        track(presence, fix(1), inside, index)
        assert len(presence.inside) == len(inside)
        for ts in range(2, 502):
            track(presence, fix(ts), inside, index)

    def wander() -> None:
        presence = Presence()
        for ts in range(1, 501):
            track(presence, fix(ts), nowhere, index)

    return {f"enters {len(inside)}": best_us(enter, 500), "stays": best_us(stay, 500), "nowhere": best_us(wander, 500)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stores", type=int, default=500)
    stores = parser.parse_args().stores
    chance = random.Random(7)
    world = city(stores, chance)
    rows: dict[str, float] = {}
    index = FenceIndex.build(world.fences)
    store = world.stores[0]
    rows |= {f"track: {case}": cost for case, cost in tracking(index, store.lat, store.lng).items()}
    print(f"{'step':<48}{'microseconds':>14}")
    for name, cost in rows.items():
        print(f"{name:<48}{cost:>14.2f}")
    rounded = {name: round(cost, 3) for name, cost in rows.items()}
    print(json.dumps({"bench": "parts", "fences": len(world.fences), "microseconds": rounded}))


if __name__ == "__main__":
    main()
