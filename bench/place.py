"""How good the tracker is: enters, dwells and exits against the truth, jitter at an edge, and recorded tracks.

    python -m bench.place [--rounds 24] [--hours 24] [--plots DIR] [--no-recorded]

`bench.tracks` says how people walk and receivers err, `bench.place_score` what is compared and when a report is right,
`bench.recorded` where recorded tracks come from. The seed is fixed.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from bench import place_plots, recorded
from bench.place_score import KINDS, LENGTHS_S, SEED, SYSTEMS, Report, Result, Tally, walk_all
from bench.tracks import RADIUS_PER_SIGMA, STORE, Errors, Receiver, fences, standing
from geofence.index import FenceIndex
from nearcast.errors import InputError
from nearcast.events import STREET_GPS_M

ERRORS: tuple[Errors, ...] = ("white", "drift", "reflections")
#: Of the walks: reported accuracies, the radius of 68 %. Of the jitter: deviations along an axis.
ACCURACIES_M = (5.0, 25.0)
SIGMAS_M = (5.0, 25.0 / RADIUS_PER_SIGMA, 25.0)
INTERVALS_S = (1, 15)
#: Where somebody stands still: so far inside the store's wall.
PLACES_M = (-10.0, -2.0, 0.0, 2.0, 10.0)
#: The aims speak of visits from this length on.
LONG_S = 60
#: An enter so soon after an exit from the same fence: one of the two was most likely false.
BACK_S = 120.0


Row = TypeVar("Row")


class Jitter(NamedTuple):
    """False transitions of one system while somebody stood still."""

    sigma_m: float
    errors: Errors
    inside_m: float
    system: str
    enters: int
    exits: int


class Flapping(NamedTuple):
    """What one system made of a recorded track, all fixes taken as of one accuracy."""

    track: str
    accuracy_m: float
    system: str
    hours_near: float
    enters: int
    exits: int
    back: int


def jitter(case: tuple[float, Errors, float], hours: float) -> list[Jitter]:
    """Who stands outside never enters; who stands inside enters once; on the edge one enter is as good as none."""
    sigma_m, errors, inside_m = case
    index = FenceIndex.build([fence for fence in fences() if fence.id == STORE])
    walk = standing(inside_m, round(hours * 3600))
    fixes = Receiver(sigma_m, errors, 1).fixes(
        walk, np.random.default_rng([SEED, round(sigma_m), round(inside_m + 99)])
    )
    rows = []
    for name, system in SYSTEMS.items():
        kinds = [report.kind for report in system(fixes, index)]
        right = 1 if inside_m >= 0 else 0
        rows.append(Jitter(sigma_m, errors, inside_m, name, max(0, kinds.count("enter") - right), kinds.count("exit")))
    return rows


def flapping(track: recorded.Recorded) -> Iterator[tuple[Flapping, list[Report]]]:
    """Once as the product takes a feed that tells no accuracy, and once as good as a sports watch can be."""
    index = FenceIndex.build(track.fences())
    for accuracy_m in (STREET_GPS_M, 5.0):
        fixes = track.fixes(accuracy_m)
        for name, system in SYSTEMS.items():
            reports = system(fixes, index)
            enters, exits = (sum(report.kind == kind for report in reports) for kind in ("enter", "exit"))
            row = Flapping(track.name, accuracy_m, name, track.hours_near(), enters, exits, _back(reports))
            yield row, reports


def _back(reports: Sequence[Report]) -> int:
    left: dict[str, float] = {}
    back = 0
    for report in reports:
        if report.kind == "exit":
            left[report.fence] = report.at_s
        elif report.kind == "enter":
            back += report.at_s - left.get(report.fence, -BACK_S - 1) <= BACK_S
    return back


def of_fences(result: Result, fence: str | None) -> dict[str, Tally]:
    """The tallies of one fence, or of all together."""
    if fence is not None:
        return result.tallies[fence]
    every = list(result.tallies.values())
    return {
        kind: Tally(
            sum(each[kind].true for each in every),
            sum(each[kind].reported for each in every),
            sum(each[kind].right for each in every),
            [delay for each in every for delay in each[kind].delays_s],
            [delay for each in every for delay in each[kind].delays_fixes],
        )
        for kind in KINDS
    }


def found_from(result: Result, fence: str, seconds: int) -> tuple[int, int]:
    """Of the visits to a fence of at least this length: how many were noticed, and how many there were."""
    counts = [count for length, count in result.visits.get(fence, {}).items() if length >= seconds]
    return sum(found for found, _ in counts), sum(of for _, of in counts)


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _delay(tally: Tally) -> str:
    if not tally.right:
        return "-"
    median, high = np.percentile(tally.delays_s, [50, 95])
    return f"{median:.0f} / {high:.0f} s, {statistics.median(tally.delays_fixes):.0f}"


def print_walks(results: Iterable[Result], fence: str | None) -> None:
    print(f"\nWalks, {fence or 'all fences'}: precision %, recall %, delay (median / p95, median in fixes)")
    print(f"{'receiver':<28}{'system':<12}" + "".join(f"{kind:<34}" for kind in KINDS))
    for result in results:
        receiver = result.receiver
        name = f"{receiver.accuracy_m:g} m {receiver.errors}, {receiver.interval_s} s"
        cells = (
            f"{_share(tally.precision):>5} {_share(tally.recall):>5}  {_delay(tally):<21}"
            for tally in of_fences(result, fence).values()
        )
        print(f"{name:<28}{result.system:<12}{''.join(cells)}")


def print_visits(results: Iterable[Result]) -> None:
    print("\nVisits noticed by nearcast, by length, of those that there were")
    classes = [f"{low}-{high} s" for low, high in zip(LENGTHS_S, (*LENGTHS_S[1:], ""), strict=True)]
    print(f"{'receiver':<28}{'fence':<12}" + "".join(f"{name:>12}" for name in classes))
    for result in results:
        receiver = result.receiver
        name = f"{receiver.accuracy_m:g} m {receiver.errors}, {receiver.interval_s} s"
        for fence, lengths in result.visits.items():
            cells = (f"{found}/{of}" if of else "-" for found, of in (lengths.get(low, (0, 0)) for low in LENGTHS_S))
            print(f"{name:<28}{fence:<12}" + "".join(f"{cell:>12}" for cell in cells))


def print_jitter(rows: Sequence[Jitter], hours: float) -> None:
    print(f"\nStanding still for {hours:g} h, a fix a second: false enters + false exits; metres inside the wall")
    print(f"{'receiver':<28}{'system':<12}" + "".join(f"{place:>+14g}" for place in PLACES_M))
    cells = {(row.sigma_m, row.errors, row.system, row.inside_m): f"{row.enters}+{row.exits}" for row in rows}
    for sigma_m in SIGMAS_M:
        for errors in ERRORS:
            for system in SYSTEMS:
                line = "".join(f"{cells[sigma_m, errors, system, place]:>14}" for place in PLACES_M)
                print(f"{f'sigma {sigma_m:.1f} m, {errors}':<28}{system:<12}{line}")


def print_confidences(classes: dict[float, tuple[int, int]]) -> None:
    print("\nConfidence of nearcast's reports, all walks: how many were right")
    before = 0.0
    for level, (right, of) in sorted(classes.items()):
        print(f"{f'{before:g} to {level:g}':<16}{right:>6} of {of:<6}{100 * right / of:>6.1f} %")
        before = level


def print_flapping(rows: Iterable[Flapping]) -> None:
    print("\nRecorded tracks: transitions near an edge, and enters within 2 minutes of an exit")
    print(
        f"{'track':<22}{'accuracy':<10}{'system':<12}{'near, h':>8}{'enters':>8}{'exits':>7}{'per hour':>10}{'back':>6}"
    )
    for row in rows:
        hourly = (row.enters + row.exits) / row.hours_near
        print(
            f"{row.track:<22}{f'{row.accuracy_m:g} m':<10}{row.system:<12}{row.hours_near:>8.2f}"
            f"{row.enters:>8}{row.exits:>7}{hourly:>10.0f}{row.back:>6}"
        )


def confidences(results: Iterable[Result]) -> dict[float, tuple[int, int]]:
    """Right reports and all, of all results together."""
    classes: dict[float, tuple[int, int]] = {}
    for result in results:
        for level, (right, of) in result.confidences.items():
            before = classes.get(level, (0, 0))
            classes[level] = (before[0] + right, before[1] + of)
    return classes


def as_row(result: Result) -> dict[str, object]:
    """A result for the last line."""

    def figures(tally: Tally) -> dict[str, object]:
        return {
            "true": tally.true,
            "precision": tally.precision,
            "recall": tally.recall,
            "median_s": statistics.median(tally.delays_s) if tally.right else None,
            "p95_s": float(np.percentile(tally.delays_s, 95)) if tally.right else None,
            "median_fixes": statistics.median(tally.delays_fixes) if tally.right else None,
        }

    return {
        "accuracy_m": round(result.receiver.accuracy_m, 1),
        "errors": result.receiver.errors,
        "interval_s": result.receiver.interval_s,
        "system": result.system,
        "fences": {
            fence: {kind: figures(tally) for kind, tally in kinds.items()} for fence, kinds in result.tallies.items()
        },
        "visits": result.visits,
        "confidences": result.confidences,
    }


def aims(results: Sequence[Result], rows: Sequence[Jitter]) -> dict[str, object]:
    """What was aimed at, of nearcast, at the store: the worst figure over the kinds of errors."""
    good = [
        result
        for result in results
        if result.system == "nearcast" and result.receiver.accuracy_m < ACCURACIES_M[0] + 0.1
    ]
    seen = [found_from(result, STORE, LONG_S) for result in good]
    own = [row for row in rows if row.system == "nearcast"]
    asked = [row for row in own if row.errors != "reflections" and row.sigma_m in (SIGMAS_M[0], SIGMAS_M[-1])]
    return {
        "recall_over_60_s": min(found / of for found, of in seen),
        "enter_median_fixes": {
            f"{interval_s} s": max(
                statistics.median(result.tallies[STORE]["enter"].delays_fixes)
                for result in good
                if result.receiver.interval_s == interval_s
            )
            for interval_s in INTERVALS_S
        },
        "false_in_jitter": sum(row.enters + row.exits for row in asked),
        "false_in_all_jitter": sum(row.enters + row.exits for row in own),
    }


def draw(
    folder: Path, results: Sequence[Result], rows: Sequence[Jitter], tracks: Sequence[recorded.Recorded], hours: float
) -> None:
    """Write all plots."""
    folder.mkdir(parents=True, exist_ok=True)
    places: dict[str, dict[str, float]] = {}
    for row in rows:
        if row.errors != "drift":
            continue
        where = "on edge" if not row.inside_m else f"{abs(row.inside_m):g} m {'in' if row.inside_m > 0 else 'out'}"
        places.setdefault(f"sigma {row.sigma_m:.0f} m\n{where}", {})[row.system] = row.enters + row.exits
    title = f"Standing still for {hours:g} h: false enters and exits (drifting errors, a fix a second)"
    (folder / "jitter.svg").write_text(place_plots.bars(title, "false transitions", places, scale="log"))
    for interval_s in INTERVALS_S:
        chosen = [one for one in results if _is(one.receiver, ACCURACIES_M[0], "drift", interval_s)]
        delays = {one.system: one.tallies[STORE]["enter"].delays_s for one in chosen}
        title = f"Enters of the store: delay (accuracy 5 m, drifting errors, a fix every {interval_s} s)"
        plot = place_plots.shares(title, "seconds after the true enter", delays, -30, 90)
        (folder / f"delay-{interval_s}s.svg").write_text(plot)
    right: dict[str, dict[str, float]] = {}
    for one in results:
        if _is(one.receiver, one.receiver.accuracy_m, "drift", 1):
            for kind in KINDS:
                tally = one.tallies[STORE][kind]
                for name, value in (("precision", tally.precision), ("recall", tally.recall)):
                    group = right.setdefault(f"{one.receiver.accuracy_m:g} m {kind}\n{name}", {})
                    group[one.system] = value or 0.0
    title = "The store: precision and recall (drifting errors, a fix a second)"
    (folder / "right.svg").write_text(place_plots.bars(title, "share", right))
    own = [one for one in results if one.system == "nearcast"]
    (folder / "confidence.svg").write_text(place_plots.trust("What a confidence is worth", confidences(own)))
    for track in tracks:
        index = FenceIndex.build(track.fences())
        told = {name: system(track.fixes(5.0), index) for name, system in SYSTEMS.items()}
        edges = [name for name in track.plan if name.startswith("edge")] or list(track.plan)
        worst = max(edges, key=lambda fence: sum(report.fence == fence for report in told["raw"]))
        plot = place_plots.recorded(f"{track.name}: {worst}", track, worst, told, recorded.NEAR_M)
        (folder / f"{track.name.replace(' ', '-')}.svg").write_text(plot)


def _is(receiver: Receiver, accuracy_m: float, errors: Errors, interval_s: int) -> bool:
    return abs(receiver.accuracy_m - accuracy_m) < 0.1 and (receiver.errors, receiver.interval_s) == (
        errors,
        interval_s,
    )


def _gathered(what: str, parts: Iterable[list[Row]], count: int) -> list[Row]:
    """All rows; says on stderr how far it is."""
    rows: list[Row] = []
    for number, part in enumerate(parts, 1):
        rows += part
        print(f"\r{what}: {number} of {count}", end="\n" if number == count else "", file=sys.stderr, flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=24, help="ten walks each")
    parser.add_argument("--hours", type=float, default=24.0, help="of standing still")
    parser.add_argument("--plots", type=Path, help="write plots into this folder")
    parser.add_argument("--no-recorded", action="store_true", help="without the recorded tracks, which are fetched")
    options = parser.parse_args()
    receivers = [
        Receiver(accuracy_m / RADIUS_PER_SIGMA, errors, interval_s)
        for accuracy_m in ACCURACIES_M
        for errors in ERRORS
        for interval_s in INTERVALS_S
    ]
    cases = [(sigma_m, errors, place) for sigma_m in SIGMAS_M for errors in ERRORS for place in PLACES_M]
    with ProcessPoolExecutor() as pool:
        results = _gathered("walks", pool.map(partial(walk_all, rounds=options.rounds), receivers), len(receivers))
        standers = _gathered("standing still", pool.map(partial(jitter, hours=options.hours), cases), len(cases))
    tracks, why_not = [], ""
    if not options.no_recorded:
        try:
            tracks = recorded.load()
        except (OSError, subprocess.SubprocessError, InputError) as error:
            why_not = str(error)
    flaps = [row for track in tracks for row, _ in flapping(track)]
    own = [result for result in results if result.system == "nearcast"]
    for fence in (STORE, None):
        print_walks(results, fence)
    print_visits(own)
    print_confidences(confidences(own))
    print_jitter(standers, options.hours)
    print_flapping(flaps)
    if why_not:
        print(f"The recorded tracks can't be had: {why_not}")
    if options.plots:
        draw(options.plots, results, standers, tracks, options.hours)
    reached = aims(results, standers)
    print(
        "\nAims: recall over 60 s >= 0.99; enter within 2 fixes (median); no false transition in 24 h of jitter of"
        f" {SIGMAS_M[0]:g} and {SIGMAS_M[-1]:g} m without reflections"
    )
    print("\n".join(f"{name:<24}{value}" for name, value in reached.items()))
    row = {
        "bench": "place",
        "rounds": options.rounds,
        "hours": options.hours,
        "aims": reached,
        "walks": [as_row(result) for result in results],
        "jitter": [one._asdict() for one in standers],
        "recorded": [one._asdict() for one in flaps],
    }
    print(json.dumps(row))


if __name__ == "__main__":
    main()
