"""Three systems that report transitions, and how their reports are held against the truth.

"nearcast" is the tracker with its default rules; "raw" believes every fix (inside the fence: enter; outside: exit);
"dwell-only" changes its mind once all fixes of 30 s have said the same.

A report is right if it can be matched to a true transition of the same kind and fence. Of the true ones that no earlier
report took, and whose window holds its time, a report takes the one whose window ends first: the most matches there
can be. A window begins 30 s before the transition (whoever comes in has often walked along the shop window before) and
ends 120 s after it, or 15 s after the opposite one if that is sooner. A true dwell is 60 s after an enter, if the visit
lasts so long.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

import msgspec
import numpy as np

from bench.tracks import DWELL_S, START_MS, Floats, Receiver, Visit, fences, walks
from geofence.index import FenceIndex
from geofence.tracker import next_due_ms, on_timer, track
from nearcast.customer import Presence
from nearcast.events import Location
from nearcast.moments import Transition

KINDS = ("enter", "dwell", "exit")
EARLY_S, LATE_S, AFTER_S = 30.0, 120.0, 15.0
#: "dwell-only" waits for so long.
PATIENCE_S = 30.0
#: Visits by length: from so many seconds up to the next.
LENGTHS_S = (0, 15, 60, 300)
#: Reports by confidence: up to so much, from the one before.
CONFIDENCES = (0.5, 0.7, 0.9, 0.95, 0.99, 1.0)
SEED = 7


class Report(NamedTuple):
    """What a system says, and when it says it: seconds since the start of the walk."""

    kind: str
    fence: str
    at_s: float
    confidence: float = 1.0


class Expected(NamedTuple):
    """A true transition, when it may be reported, and how long the visit is that it belongs to."""

    kind: str
    fence: str
    at_s: float
    from_s: float
    until_s: float
    visit_s: float


System = Callable[[Sequence[Location], FenceIndex], list[Report]]


def nearcast(fixes: Sequence[Location], index: FenceIndex) -> list[Report]:
    """The tracker and its timers, as the engine drives them. Only this function knows how they are called."""
    presence = Presence()
    reports: list[Report] = []

    def note(transitions: Sequence[Transition], now_ms: int) -> None:
        at_s = (now_ms - START_MS) / 1000
        reports.extend(Report(one.kind, one.fence.id, at_s, one.confidence) for one in transitions if one.kind in KINDS)

    matched = index.match(np.array([fix.lat for fix in fixes]), np.array([fix.lng for fix in fixes]))
    for fix, ordinals in zip(fixes, matched, strict=True):
        while 0 < (due_ms := next_due_ms(presence, index)) <= fix.ts:
            note(on_timer(presence, due_ms, index), due_ms)
        note(track(presence, fix, [index.fences[ordinal] for ordinal in ordinals], index), fix.ts)
    return reports


def raw(fixes: Sequence[Location], index: FenceIndex) -> list[Report]:
    """Every fix is believed."""
    return _patient(fixes, index, patience_s=0.0)


def dwell_only(fixes: Sequence[Location], index: FenceIndex) -> list[Report]:
    """Inside (outside) once every fix of 30 s has been inside (outside)."""
    return _patient(fixes, index, patience_s=PATIENCE_S)


def _patient(fixes: Sequence[Location], index: FenceIndex, patience_s: float) -> list[Report]:
    matched = index.match(np.array([fix.lat for fix in fixes]), np.array([fix.lng for fix in fixes]))
    times = [(fix.ts - START_MS) / 1000 for fix in fixes]
    reports = []
    for ordinal, fence in enumerate(index.fences):
        believed, dwelled, entered_s = False, False, 0.0
        # Since when the fixes have said the other thing.
        doubted_s: float | None = None
        for at_s, ordinals in zip(times, matched, strict=True):
            if (ordinal in ordinals) == believed:
                doubted_s = None
            else:
                doubted_s = at_s if doubted_s is None else doubted_s
                if at_s - doubted_s >= patience_s:
                    believed, dwelled, entered_s, doubted_s = not believed, False, at_s, None
                    reports.append(Report("enter" if believed else "exit", fence.id, at_s))
            if believed and not dwelled and at_s - entered_s >= DWELL_S:
                dwelled = True
                reports.append(Report("dwell", fence.id, at_s))
    return sorted(reports, key=lambda report: report.at_s)


SYSTEMS: dict[str, System] = {"nearcast": nearcast, "raw": raw, "dwell-only": dwell_only}


def expected(visits: Sequence[Visit]) -> Iterator[Expected]:
    """What a perfect system reports. The visits of one fence stand together, in order of time."""
    for fence, group in groupby(visits, key=lambda visit: visit.fence):
        own = list(group)
        followers = [*(visit.entered_s for visit in own[1:]), float("inf")]
        for (_, entered_s, left_s), next_s in zip(own, followers, strict=True):
            visit_s = left_s - entered_s
            moments = [("enter", entered_s, left_s), ("exit", left_s, next_s)]
            if visit_s >= DWELL_S:
                moments.append(("dwell", entered_s + DWELL_S, left_s))
            for kind, at_s, over_s in moments:
                until_s = min(at_s + LATE_S, over_s + AFTER_S)
                yield Expected(kind, fence, at_s, at_s - EARLY_S, until_s, visit_s)


def match(reports: Sequence[Report], truth: Sequence[Expected]) -> list[Expected | None]:
    """For each report, in order of time, what it is about; None: a false one."""
    free = list(truth)
    found: list[Expected | None] = []
    for report in reports:
        about = min(
            (
                one
                for one in free
                if (one.kind, one.fence) == (report.kind, report.fence) and one.from_s <= report.at_s <= one.until_s
            ),
            key=lambda one: one.until_s,
            default=None,
        )
        if about is not None:
            free = [one for one in free if one is not about]
        found.append(about)
    return found


class Tally(msgspec.Struct):
    """Of one kind of transition: how many there were, were reported and were right, and the delays of those."""

    true: int = 0
    reported: int = 0
    right: int = 0
    delays_s: list[float] = []
    delays_fixes: list[int] = []

    @property
    def precision(self) -> float | None:
        return self.right / self.reported if self.reported else None

    @property
    def recall(self) -> float | None:
        return self.right / self.true if self.true else None


class Result(msgspec.Struct):
    """What one system made of all walks as one receiver saw them."""

    receiver: Receiver
    system: str
    #: By fence and kind.
    tallies: dict[str, dict[str, Tally]]
    #: Enters found and expected, by fence and class of visit.
    visits: dict[str, dict[int, tuple[int, int]]]
    #: Right reports and all, by class of confidence.
    confidences: dict[float, tuple[int, int]]


def walk_all(receiver: Receiver, rounds: int, systems: Sequence[str] = tuple(SYSTEMS)) -> list[Result]:
    """The systems over the same fixes of the same walks."""
    index = FenceIndex.build(fences())
    chance = np.random.default_rng([SEED, round(receiver.sigma_m * 10), receiver.interval_s])
    results = [
        Result(receiver, name, {fence.id: {kind: Tally() for kind in KINDS} for fence in index.fences}, {}, {})
        for name in systems
    ]
    for walk in walks(rounds, SEED):
        truth = list(expected(walk.visits()))
        fixes = receiver.fixes(walk, chance)
        times = np.array([(fix.ts - START_MS) / 1000 for fix in fixes])
        for result in results:
            _count(result, SYSTEMS[result.system](fixes, index), truth, times)
    return results


def _count(result: Result, reports: Sequence[Report], truth: Sequence[Expected], times: Floats) -> None:
    abouts = match(reports, truth)
    for one in truth:
        result.tallies[one.fence][one.kind].true += 1
        if one.kind == "enter":
            lengths = result.visits.setdefault(one.fence, {})
            length = max(length for length in LENGTHS_S if length <= one.visit_s)
            found, of = lengths.get(length, (0, 0))
            lengths[length] = (found + any(about is one for about in abouts), of + 1)
    for report, about in zip(reports, abouts, strict=True):
        tally = result.tallies[report.fence][report.kind]
        tally.reported += 1
        level = next(level for level in CONFIDENCES if report.confidence <= level)
        right, of = result.confidences.get(level, (0, 0))
        result.confidences[level] = (right + (about is not None), of + 1)
        if about is not None:
            tally.right += 1
            tally.delays_s.append(report.at_s - about.at_s)
            # 1: the first fix that could show it.
            tally.delays_fixes.append(int(np.count_nonzero((times >= about.at_s) & (times <= report.at_s))))
