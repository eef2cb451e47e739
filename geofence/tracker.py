"""From fixes to transitions: enter, dwell, exit, approach and cross of one customer. Pure, in event time.

Fixes of one customer must come one at a time, in log order; `track` changes the customer's `Presence` in place. A fix
that is not newer than the last one is stale: it changes nothing. `docs/decisions/0017` says why the rules are these.

* **Evidence.** How far a fix lies inside a fence's edge, in standard deviations of its error, is its depth. Fixes that
  together lie inside (the sum of their depths stays above 0) are an attempt to come in. Its evidence is half the
  square of its mean depth, times the number of its independent looks: one, and one more for every `LOOK_MS`, since the
  errors of fixes that follow each other closely are the same error. The newest three fixes may be taken alone.
* **Enter** when a fix lies inside and the evidence of the attempt reaches the bar: `START`, and more for whoever has
  hung about the edge for longer, lest a day at the shop window bring an enter. A fence that is small against the
  error can't give as much evidence, and so asks for less: the confidence says so. Fixes less than ten seconds apart
  must be three (or one `DEEP` inside), and the first one of all must lie three deviations inside; a fix worse than the
  fence counts for nothing. Of whoever is seen to walk (only around fences, where their way is known), two fixes and
  little evidence are enough: people who stand at the edge don't walk, however their fixes jump.
* **Exit** likewise, with depths measured outwards, and a newest fix farther outside than `exit_margin_m`. A fix that
  lies `FAR` outside is enough by itself.
* The fence's own rules (`enter_fixes`, `enter_s`, `exit_fixes`, `exit_s`) are asked for besides.
* **Dwell** once per stay, at the first fix inside `dwell_s` or more after the enter.
* **Approach** when a fix lies within `approach_m` of a fence; again only after one that lies clearly beyond.
* **Cross** when the straight way between two fixes (at most `CROSS_MS` and `CROSS_M` apart) leads through a fence in
  which neither lies, and which asks for it (`crossings`: looking for them all would cost more than all the rest). Only
  around other fences: of people who are nowhere, no position is kept.
* **Signs** (`fix.zones`, see `evidence`) prove presence at once; if coordinates disagree, the more precise is believed.
  On another floor than the fence's, a fix lies far outside.
* A stay that no fix confirmed for `SILENCE_MS` is over: the next fix, whatever it says, first gives an **exit** at the
  time the customer was last seen inside, with `SILENT_EXIT_CONFIDENCE`. If they are inside (again or still), a fresh
  enter may follow. So a dwell counts only time in sight, and an old stay can't make one.
* Whoever is in a fence is in its parents: entering a department enters the store with it, a fix in the department
  counts as one in the store, and the store is left only when no fence in it is occupied.
* What needs no fix to happen is done by a timer (`next_due_ms`, `on_timer`): the end of a silent stay, and a **dwell**
  of someone who is inside and whose phone lies still, only as probable as `UNSEEN_DWELL_CONFIDENCE`.
* A fence that is deleted, or whose time is over (`valid_until_ms`, `hours`), is left with confidence 0: nobody moved.
  So is one that was redrawn (**changed**) under a customer: the position that last confirmed the stay lies outside of
  it now, by more than the exit margin and `SURE` deviations. The next fix or timer tells, unless that fix is inside.
"""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from functools import cached_property
from statistics import NormalDist
from zoneinfo import ZoneInfo

import numpy as np
from msgspec import structs

from geofence.evidence import Sign, middle_of
from geofence.index import FenceIndex
from geofence.sampling import SIGMA_PER_ACCURACY
from geofence.sphere import distance_m
from nearcast.customer import Nearby, Pending, Presence, Stay
from nearcast.events import Location
from nearcast.ids import FenceId
from nearcast.moments import Transition
from nearcast.world import Circle, Fence

#: The evidence for a first transition, and by how much more is asked for: GROWTH * ln(1 + looks since the first
#: attempt). Tried out on simulated walks: more of either, and visits of a minute are missed; less, and a day of
#: standing at the edge brings false enters.
START = 1.5
GROWTH = 2.5
#: Errors of satellite positioning are alike for a minute or so.
LOOK_MS = 40_000
#: A fence of so many deviations' reach can give all the evidence that may be asked for.
FULL_REACH = 5.0
#: No single fix says more than that, however far it lies inside: it may be a reflection.
DEEPEST = 3.0
#: Fixes closer in time than that must be three; a first one must be so deep.
DENSE_MS = 10_000
DENSE_FIXES = 3
SURE = 3.0
#: But one so deep inside needs no second.
DEEP = 10.0
#: Farther outside than this, a single fix is enough to have left, however soon: no error is that large.
FAR = 30.0
#: Whoever walks asks for less: fixes half a deviation inside. Nobody who stands still is so many deviations away from
#: where they were 15 to 45 seconds ago, and a reflection is one jump, not several steps.
WALKING_START = 0.125
WALKING_FIXES = 2
_WALKED = 6.0
_TRAIL_STEP_MS, _TRAIL_MIN_MS, _TRAIL_MS = 7_000, 14_000, 45_000
_LEAST_SHARE = 0.25
#: Farther outside than this, an attempt to come in is forgotten, and an approach is over.
CLEAR = 4.5
#: An enter or a cross needs at least this probability.
MIN_CONFIDENCE = 0.5
#: Satellite positioning of a phone is not better than this, whatever it claims (some report 0 for "unknown").
GPS_FLOOR_M = 3.0
_SIGMA_FLOOR_M = 0.1

#: After this long out of sight we no longer claim to know where someone is: 15 minutes. Phones in the background report
#: every few minutes even when they save power, and a look around the neighbour's shop takes less than this.
SILENCE_MS = 15 * 60_000
#: Whether they left, or sat where no fix got through, is anyone's guess. By default offers don't act on that little.
SILENT_EXIT_CONFIDENCE = 0.4
#: A dwell without a fix: all that is known is that the customer came in, and was not seen leaving.
UNSEEN_DWELL_CONFIDENCE = 0.5

CROSS_MS = 120_000
CROSS_M = 2_000.0
#: What lies between two fixes is looked at this densely; a fence in between that is narrower may be missed.
_CROSS_STEP_M = 5.0
#: Fixes that are no farther apart than this many accuracies may be the same place.
_APART_ACCURACIES = 3.0

#: How many fences one customer's attempts are kept for.
KEPT_PENDING = 32

_ORDER = {"exit": 0, "cross": 1, "approach": 2, "enter": 3, "dwell": 4}
_NORMAL = NormalDist()


def track(
    presence: Presence, fix: Location, inside: Sequence[Fence], index: FenceIndex, near: Sequence[Fence] = ()
) -> list[Transition]:
    """What `fix` changes. `inside` are the fences of `index` that contain it, and `near` those within whose
    `approach_m` it lies: `places` tells them from what `FenceIndex.match` says.

    Exits come first (inner fences before those around them), then crosses, approaches, enters (outer first) and
    dwells; equals by fence id.
    """
    if fix.ts <= presence.last_ms:
        return []
    presence.last_ms = fix.ts
    if not (inside or presence.inside or presence.nearby or near or fix.zones):
        return []
    if _confirms(presence, fix, inside, index, near):
        return []
    transitions = _end_stays(presence, fix.ts, index)
    known = presence.nearby
    if known is not None and fix.ts - known.at_ms > SILENCE_MS:
        known = None
    view = _View(fix, inside, known, index)
    stays = presence.inside
    entering = _kept(known.entering if known else {}, fix.ts, index.by_id)
    leaving = _kept(known.leaving if known else {}, fix.ts, stays)

    held = {fence_id for fence_id in view.containing if fence_id in stays} | (view.proven.keys() & stays.keys())
    changed = _redrawn(stays.keys() - held, presence, index, transitions)
    left = {fence_id: found for fence_id in stays.keys() - held if (found := _left(fence_id, view, leaving))}
    left |= dict.fromkeys(changed, 0.0)
    for fence_id in held & leaving.keys():
        _note(leaving, fence_id, view, outwards=True)
    won = dict(view.proven_anew(stays))
    candidates = (view.containing | entering.keys()) - stays.keys() - won.keys()
    for fence_id in sorted(candidates):
        if found := _won(fence_id, view, entering):
            won[fence_id] = found

    around = _around((stays.keys() - left.keys()) | won.keys() | held, index)
    left = {fence_id: confidence for fence_id, confidence in left.items() if fence_id not in around}
    for fence_id in _around(won, index) - stays.keys():
        within = [chance for other, chance in won.items() if fence_id in _around([other], index)]
        won[fence_id] = max([won.get(fence_id, 0.0), *within])
    seen = held | (_around(held | won.keys(), index) & stays.keys())

    transitions += [
        Transition("exit", index.by_id[fence_id], fix.ts, sure, "changed" if fence_id in changed else "")
        for fence_id, sure in left.items()
    ]
    for fence_id in left:
        del stays[fence_id]
    transitions += _crossed(view, known, stays.keys() | won.keys() | entering.keys() | left.keys())
    for fence_id in seen:
        stay = stays[fence_id]
        stay.last_inside_ms = fix.ts
        if not stay.dwelled and fix.ts - stay.entered_ms >= index.rules[fence_id].dwell_ms:
            stay.dwelled = True
            transitions.append(
                Transition("dwell", index.by_id[fence_id], fix.ts, view.still_inside(fence_id, stay, held))
            )
    for fence_id in sorted(won):
        stays[fence_id] = Stay(fix.ts, fix.ts, confidence=won[fence_id])
        transitions.append(Transition("enter", index.by_id[fence_id], fix.ts, won[fence_id]))
    approached = _still_near(known.approached if known else {}, view)
    transitions += _approached(approached, near, view, stays)
    for fence_id in won.keys() & entering.keys():
        del entering[fence_id]
    for fence_id in left.keys() & leaving.keys():
        del leaving[fence_id]
    presence.nearby = None
    if stays or entering or approached:
        presence.nearby = Nearby(
            fix.lat if view.located else 0.0,
            fix.lng if view.located else 0.0,
            fix.ts,
            view.located,
            approached,
            _newest(entering),
            _newest(leaving),
            view.trail,
            view.accuracy_m if view.located and not view.proven else -1.0,
        )
    return _in_order(transitions, index)


def places(hits: Iterable[int], index: FenceIndex) -> tuple[list[Fence], list[Fence]]:
    """The fences that contain a position, and those within whose `approach_m` it lies, from what `match` says of it."""
    fences = index.fences
    inside, near = [], []
    for ordinal in hits:
        if ordinal < len(fences):
            inside.append(fences[ordinal])
        else:
            near.append(fences[index.near[ordinal - len(fences)]])
    return inside, near


def next_due_ms(presence: Presence, index: FenceIndex) -> int:
    """When something will happen if no further fix comes; 0 if nothing will.

    That is a transition, or the last known position's turn to be forgotten.
    """
    dues = [presence.nearby.at_ms + SILENCE_MS + 1] if presence.nearby else []
    for fence_id, stay in presence.inside.items():
        silent_ms = stay.last_inside_ms + SILENCE_MS + 1
        dues.append(silent_ms)
        if fence_id not in index.by_id:
            continue
        if not stay.dwelled:
            dues.append(stay.entered_ms + index.rules[fence_id].dwell_ms)
        closing_ms = _closing_ms(fence_id, stay, silent_ms, index)
        if closing_ms is not None:
            dues.append(closing_ms)
    return min(dues, default=0)


def on_timer(presence: Presence, now_ms: int, index: FenceIndex) -> list[Transition]:
    """What happens at `now_ms` without a fix: stays end, who is inside for long enough dwells, and the position of who
    is silent is forgotten.

    In the order of `track`. Does not look at `presence.last_ms`: a timer is no evidence of where anyone is.
    """
    transitions = _end_stays(presence, now_ms, index)
    for fence_id in sorted(_redrawn(presence.inside.keys(), presence, index, transitions)):
        del presence.inside[fence_id]
        transitions.append(Transition("exit", index.by_id[fence_id], now_ms, 0.0, "changed"))
    for fence_id, stay in presence.inside.items():
        if not stay.dwelled and now_ms - stay.entered_ms >= index.rules[fence_id].dwell_ms:
            stay.dwelled = True
            transitions.append(Transition("dwell", index.by_id[fence_id], now_ms, UNSEEN_DWELL_CONFIDENCE))
    if presence.nearby and now_ms - presence.nearby.at_ms > SILENCE_MS:
        presence.nearby = None
    return _in_order(transitions, index)


def _confirms(
    presence: Presence, fix: Location, inside: Sequence[Fence], index: FenceIndex, near: Sequence[Fence]
) -> bool:
    """Note what most fixes in a fence say: still in all of them, and nothing else. False if there is more to it.

    Leads to what the general case would lead to, which costs many times as much.
    """
    stays, nearby = presence.inside, presence.nearby
    if (
        nearby is None
        or len(stays) != len(inside)
        or nearby.entering
        or nearby.leaving
        or len(near) != len(nearby.approached)
        or fix.zones
        or fix.floor is not None
        or not nearby.located
        or not inside
    ):
        return False
    now_ms, accuracy_m = fix.ts, _accuracy_m(fix)
    for fence in inside:
        stay, rules = stays.get(fence.fence_id), index.rules[fence.fence_id]
        if (
            stay is None
            or now_ms - stay.last_inside_ms > SILENCE_MS
            or not (stay.dwelled or now_ms - stay.entered_ms < rules.dwell_ms)
            or rules.timed
            or accuracy_m > index.reach_m(fence.fence_id)
        ):
            return False
    if any(fence.fence_id not in nearby.approached for fence in near):
        return False
    if distance_m(nearby.lat, nearby.lng, fix.lat, fix.lng) > _APART_ACCURACIES * accuracy_m:
        # The way here may have led through another fence.
        return False
    for stay in stays.values():
        stay.last_inside_ms = now_ms
    nearby.trail = _trail(nearby, now_ms)
    nearby.lat, nearby.lng, nearby.at_ms, nearby.accuracy_m = fix.lat, fix.lng, now_ms, accuracy_m
    return True


def _trail(nearby: Nearby, now_ms: int) -> list[tuple[int, float, float]]:
    """The positions that are still of interest at `now_ms`, the newest of them among them if it is time for one."""
    trail = nearby.trail
    if nearby.located and (not trail or nearby.at_ms - trail[-1][0] >= _TRAIL_STEP_MS):
        trail = [*trail, (nearby.at_ms, nearby.lat, nearby.lng)]
    if trail and now_ms - trail[0][0] > _TRAIL_MS:
        trail = [point for point in trail if now_ms - point[0] <= _TRAIL_MS]
    return trail


def _accuracy_m(fix: Location) -> float:
    return max(fix.accuracy_m, GPS_FLOOR_M) if fix.source == "gps" else fix.accuracy_m


def _sigma_m(accuracy_m: float) -> float:
    return max(accuracy_m * SIGMA_PER_ACCURACY, _SIGMA_FLOOR_M)


class _View:
    """What one fix says of each fence; distances are worked out when asked for, and only once."""

    def __init__(self, fix: Location, inside: Sequence[Fence], known: Nearby | None, index: FenceIndex) -> None:
        self.fix = fix
        self.index = index
        self.accuracy_m = _accuracy_m(fix)
        self.sigma_m = _sigma_m(self.accuracy_m)
        #: False: there are no coordinates, or none that can be believed.
        self.located = fix.lat == fix.lat
        #: How long after the last fix that was kept; None: there is none.
        self.gap_ms = fix.ts - known.at_ms if known else None
        self.trail = _trail(known, fix.ts) if known else []
        self._depths: dict[FenceId, float] = {}
        #: By fence, and by those around it: the signs that are believed.
        self.proven: dict[FenceId, Sign] = {}
        if fix.zones:
            self._weigh(fix.zones)
        #: The fences that the coordinates lie in, as far as they can tell.
        self.containing: Set[FenceId] = set()
        if self.located:
            self.containing = {fence.fence_id for fence in inside if self.tells(fence.fence_id)}

    def _weigh(self, tokens: Sequence[str]) -> None:
        """Believe signs or coordinates, whichever is more precise, where they disagree."""
        believed = {}
        contradicted = False
        for fence_id, sign in self.index.evidence.of(tokens, self.index.reach_m).items():
            if self._other_floor(fence_id):
                continue
            if self.located and -self._depth_m(fence_id) > sign.precision_m + CLEAR * self.sigma_m:
                if self.accuracy_m <= sign.precision_m:
                    continue
                contradicted = True
            believed[fence_id] = sign
        self.proven = believed
        if contradicted:
            self.located = False

    @cached_property
    def walking(self) -> bool:
        """Whether the customer is on the move, step by step, as far as the error of the fixes lets that be seen."""
        fix, trail = self.fix, self.trail
        if not self.located or len(trail) < WALKING_FIXES or fix.ts - trail[0][0] < _TRAIL_MIN_MS:
            return False
        (_, lat, lng), (_, mid_lat, mid_lng) = trail[0], trail[len(trail) // 2]
        walked_m = distance_m(lat, lng, fix.lat, fix.lng)
        first_m = distance_m(lat, lng, mid_lat, mid_lng)
        second_m = distance_m(mid_lat, mid_lng, fix.lat, fix.lng)
        return walked_m > _WALKED * self.sigma_m and min(first_m, second_m) > _LEAST_SHARE * walked_m

    def tells(self, fence_id: FenceId) -> bool:
        """Whether the fix can say that somebody is in the fence: precise enough, on its floor, in its time."""
        return (
            self.accuracy_m <= self.index.reach_m(fence_id)
            and not self._other_floor(fence_id)
            and self.in_use(fence_id)
        )

    def in_use(self, fence_id: FenceId) -> bool:
        """Whether the fence, and those around it, are in force and within their hours."""
        for one in _with_those_around(fence_id, self.index):
            rules = self.index.rules[one]
            if not rules.in_force(self.fix.ts) or not rules.is_open(self.fix.ts, _zone(one, self.index)):
                return False
        return True

    def _other_floor(self, fence_id: FenceId) -> bool:
        floor = self.index.rules[fence_id].floor
        return floor is not None and self.fix.floor is not None and floor != self.fix.floor

    def _depth_m(self, fence_id: FenceId) -> float:
        depth = self._depths.get(fence_id)
        if depth is None:
            depth = self._depths[fence_id] = self.index.depth_m(fence_id, self.fix.lat, self.fix.lng)
        return depth

    def depth(self, fence_id: FenceId) -> float | None:
        """How far inside the fence it is, in deviations; below 0 outside. None: it says nothing."""
        if self._other_floor(fence_id) or (fence_id not in self.proven and self._is_elsewhere(fence_id)):
            return -DEEPEST
        if not self.located:
            return None
        depth = self._depth_m(fence_id) / self.sigma_m
        if self.accuracy_m > self.index.reach_m(fence_id) and depth > -CLEAR:
            return None
        return depth

    def _is_elsewhere(self, fence_id: FenceId) -> bool:
        """A sign tells of another place, from which this fence is clearly away."""
        for other, sign in self.proven.items():
            if fence_id in _around([other], self.index) or other in _around([fence_id], self.index):
                continue
            apart_m = -self.index.depth_m(fence_id, *middle_of(self.index.by_id[other]))
            if apart_m > sign.precision_m and self.index.depth_m(other, *middle_of(self.index.by_id[fence_id])) < 0:
                return True
        return False

    def beyond(self, fence_id: FenceId, metres: float) -> bool:
        """Whether the fix lies farther outside the fence than so much; without coordinates, as far as it can tell."""
        if self._other_floor(fence_id) or not self.located:
            return True
        return -self._depth_m(fence_id) > metres

    def proven_anew(self, stays: Mapping[FenceId, Stay]) -> Iterable[tuple[FenceId, float]]:
        """The fences that signs prove the customer to have come into, and how sure that is."""
        for fence_id, sign in self.proven.items():
            if fence_id not in stays and self.in_use(fence_id):
                yield fence_id, sign.confidence

    def chance(self, fence_id: FenceId) -> float:
        """How probable it is that this fix alone comes from inside the fence."""
        if fence_id in self.proven:
            return self.proven[fence_id].confidence
        if not self.located:
            return 0.0
        return self.index.probability(fence_id, self.fix.lat, self.fix.lng, self.accuracy_m)

    def still_inside(self, fence_id: FenceId, stay: Stay, held: Collection[FenceId]) -> float:
        """How sure a stay is now: they came in, and either this fix or the enter would have to be wrong."""
        within = [other for other in held if other == fence_id or fence_id in _around([other], self.index)]
        chance = max((self.chance(other) for other in within), default=UNSEEN_DWELL_CONFIDENCE)
        return 1 - (1 - chance) * (1 - stay.confidence)


def _kept(pendings: Mapping[FenceId, Pending], now_ms: int, known: Collection[FenceId]) -> dict[FenceId, Pending]:
    """Those that are not too old, of fences that still matter."""
    return {
        fence_id: pending
        for fence_id, pending in pendings.items()
        if fence_id in known and now_ms - pending.seen_ms <= SILENCE_MS
    }


def _newest(pendings: dict[FenceId, Pending]) -> dict[FenceId, Pending]:
    if len(pendings) <= KEPT_PENDING:
        return pendings
    newest = sorted(pendings, key=lambda fence_id: (-pendings[fence_id].seen_ms, fence_id))[:KEPT_PENDING]
    return {fence_id: pendings[fence_id] for fence_id in newest}


def _note(pendings: dict[FenceId, Pending], fence_id: FenceId, view: _View, *, outwards: bool) -> Pending | None:
    """Add what a fix says to the attempt to come into the fence (`outwards`: to leave it); returns what goes on."""
    depth, now_ms, pending = view.depth(fence_id), view.fix.ts, pendings.get(fence_id)
    if depth is None:
        return None
    if not outwards and depth < -CLEAR:
        pendings.pop(fence_id, None)
        return None
    depth = round(min(max(-depth if outwards else depth, -DEEPEST), DEEPEST), 2)
    since_ms = pending.since_ms if pending else now_ms
    if pending is None or pending.fixes == 0:
        if depth <= 0:
            return None
        pendings[fence_id] = Pending(since_ms, now_ms, now_ms, 1, depth, [depth])
    elif (depths := round(pending.depths + depth, 2)) > 0:
        recent = [*pending.recent[1 - DENSE_FIXES :], depth]
        pendings[fence_id] = Pending(since_ms, now_ms, pending.first_ms, pending.fixes + 1, depths, recent)
    else:
        pendings[fence_id] = Pending(since_ms, pending.seen_ms)
        return None
    return pendings[fence_id]


def _won(fence_id: FenceId, view: _View, entering: dict[FenceId, Pending]) -> float | None:
    """How sure it is that the customer came in, if that is sure enough; takes note of the fix."""
    pending = _note(entering, fence_id, view, outwards=False)
    if pending is None or fence_id not in view.containing:
        return None
    rules = view.index.rules[fence_id]
    if pending.fixes < rules.enter_fixes or view.fix.ts - pending.first_ms < rules.enter_ms:
        return None
    reach = view.index.reach_m(fence_id) / view.sigma_m
    deep = (view.depth(fence_id) or 0.0) >= DEEP
    confidence = _confidence(pending, view, min(1.0, reach / FULL_REACH), deep=deep)
    return confidence if confidence >= MIN_CONFIDENCE else None


def _left(fence_id: FenceId, view: _View, leaving: dict[FenceId, Pending]) -> float | None:
    """How sure it is that the customer left, if that is sure enough; takes note of the fix."""
    pending = _note(leaving, fence_id, view, outwards=True)
    if pending is None:
        return None
    rules = view.index.rules[fence_id]
    if (
        not view.beyond(fence_id, rules.exit_margin_m)
        or pending.fixes < rules.exit_fixes
        or view.fix.ts - pending.first_ms < rules.exit_ms
    ):
        return None
    if view.located and view.beyond(fence_id, FAR * view.sigma_m):
        return _NORMAL.cdf(DEEPEST)
    return _confidence(pending, view, 1.0) or None


def _confidence(pending: Pending, view: _View, share: float, *, deep: bool = False) -> float:
    """How sure an attempt makes the transition; 0 if there is too little evidence. A small fence asks for a `share`."""
    now_ms, count = view.fix.ts, pending.fixes
    looks = min(1 + (now_ms - pending.first_ms) / LOOK_MS, count)
    mean, lately = pending.depths / count, sum(pending.recent) / len(pending.recent)
    evidence = max(looks * mean * mean, lately * lately) / 2
    if count >= WALKING_FIXES and view.walking and evidence >= WALKING_START:
        return _NORMAL.cdf(math.sqrt(2 * evidence))
    if count < DENSE_FIXES and view.fix.source == "gps" and not deep:
        if view.gap_ms is None and pending.depths < SURE:
            return 0.0
        if view.gap_ms is not None and view.gap_ms < DENSE_MS:
            return 0.0
    bar = START * share**2 + GROWTH * share**1.5 * math.log1p((now_ms - pending.since_ms) / LOOK_MS)
    if evidence < bar:
        return 0.0
    return _NORMAL.cdf(math.sqrt(2 * evidence))


def _crossed(view: _View, known: Nearby | None, but: Collection[FenceId]) -> list[Transition]:
    """Fences that the way from the last fix led through, without a fix in them."""
    fix, index = view.fix, view.index
    if not index.tells_crossings or known is None or not known.located or not view.located:
        return []
    if fix.ts - known.at_ms > CROSS_MS:
        return []
    apart_m = distance_m(known.lat, known.lng, fix.lat, fix.lng)
    if not _APART_ACCURACIES * view.accuracy_m < apart_m <= CROSS_M or abs(fix.lng - known.lng) > 180:
        return []
    shares = np.linspace(0.0, 1.0, math.ceil(apart_m / _CROSS_STEP_M) + 1)[1:-1]
    lats, lngs = known.lat + shares * (fix.lat - known.lat), known.lng + shares * (fix.lng - known.lng)
    on_the_way: dict[FenceId, list[int]] = {}
    for place, hits in enumerate(index.match(lats, lngs)):
        for fence in places(hits, index)[0]:
            if fence.crossings:
                on_the_way.setdefault(fence.fence_id, []).append(place)
    found = []
    for fence_id, passed in on_the_way.items():
        ends = ((known.lat, known.lng), (fix.lat, fix.lng))
        if fence_id in but or not view.tells(fence_id) or any(index.depth_m(fence_id, *end) >= 0 for end in ends):
            continue
        midway = passed[len(passed) // 2]
        chance = index.probability(fence_id, float(lats[midway]), float(lngs[midway]), view.accuracy_m)
        if chance >= MIN_CONFIDENCE:
            found.append(Transition("cross", index.by_id[fence_id], fix.ts, chance))
    return found


def _still_near(approached: Mapping[FenceId, int], view: _View) -> dict[FenceId, int]:
    """The approaches that are not over."""
    kept = {}
    for fence_id, at_ms in approached.items():
        rules = view.index.rules.get(fence_id)
        if rules is None or not rules.approach_m:
            continue
        away_m = rules.approach_m + max(rules.exit_margin_m, CLEAR * view.sigma_m)
        if not view.located or not view.beyond(fence_id, away_m):
            kept[fence_id] = at_ms
    return kept


def _approached(
    approached: dict[FenceId, int], near: Sequence[Fence], view: _View, stays: Mapping[FenceId, Stay]
) -> list[Transition]:
    """New approaches, which are added to those that go on. Who is in the fence already, doesn't approach it."""
    found: list[Transition] = []
    if not view.located:
        return found
    for fence in near:
        fence_id, approach_m = fence.fence_id, view.index.rules[fence.fence_id].approach_m
        precise = view.accuracy_m <= approach_m + view.index.reach_m(fence_id)
        if fence_id in approached or not precise or not view.in_use(fence_id):
            continue
        approached[fence_id] = view.fix.ts
        depth_m = view.index.depth_m(fence_id, view.fix.lat, view.fix.lng)
        if fence_id not in stays and depth_m < 0:
            chance = _NORMAL.cdf((approach_m + depth_m) / view.sigma_m)
            found.append(Transition("approach", fence, view.fix.ts, chance))
    return found


def _end_stays(presence: Presence, now_ms: int, index: FenceIndex) -> list[Transition]:
    """Stays that end without a fix: of who is silent, and in fences that are deleted or not in use any more."""
    transitions = []
    for fence_id, stay in list(presence.inside.items()):
        fence, silent_ms = index.by_id.get(fence_id), stay.last_inside_ms + SILENCE_MS + 1
        closing_ms = _closing_ms(fence_id, stay, min(now_ms + 1, silent_ms), index) if fence else None
        if fence is not None and closing_ms is not None:
            in_force = index.rules[fence_id].in_force(closing_ms)
            ended = Transition("exit", fence, closing_ms, 0.0, "closed" if in_force else "expired")
        elif now_ms >= silent_ms:
            fence = fence or _removed(fence_id)
            ended = Transition("exit", fence, stay.last_inside_ms, SILENT_EXIT_CONFIDENCE, "silent")
        elif fence is None:
            ended = Transition("exit", _removed(fence_id), now_ms, 0.0, "deleted")
        else:
            continue
        del presence.inside[fence_id]
        transitions.append(ended)
    return transitions


def _redrawn(
    unconfirmed: Set[FenceId], presence: Presence, index: FenceIndex, ended: Sequence[Transition]
) -> set[FenceId]:
    """Which of these stays are over because their fences lie elsewhere than when a position last confirmed them.

    Whoever is in a fence is in those around it, wherever they are drawn: a stay that goes on, or that has `ended`
    otherwise just now, speaks for them. A fence that is deleted may do so, too, but it isn't known any more for which.
    """
    known = presence.nearby
    if known is None or not known.located or known.accuracy_m < 0 or any(item.reason == "deleted" for item in ended):
        return set()
    error_m = SURE * _sigma_m(known.accuracy_m)

    def away(fence_id: FenceId) -> bool:
        outside_m = -index.depth_m(fence_id, known.lat, known.lng)
        return outside_m > max(error_m, index.rules[fence_id].exit_margin_m)

    confirmed = {fence_id for fence_id, stay in presence.inside.items() if stay.last_inside_ms == known.at_ms}
    found = {fence_id for fence_id in confirmed & unconfirmed if away(fence_id)}
    others = {item.fence.fence_id for item in ended if item.fence.fence_id in index.by_id}
    return found - _around((confirmed - found) | others, index)


def _closing_ms(fence_id: FenceId, stay: Stay, until_ms: int, index: FenceIndex) -> int | None:
    """When a fence, or one around it, is first not in use since a stay was last confirmed; None: not before then."""
    closings = []
    for one in _with_those_around(fence_id, index):
        closing_ms = index.rules[one].closing_ms(stay.last_inside_ms, _zone(one, index), until_ms)
        if closing_ms is not None:
            closings.append(closing_ms)
    return min(closings, default=None)


def _zone(fence_id: FenceId, index: FenceIndex) -> ZoneInfo | None:
    return index.zones.get(index.by_id[fence_id].store_id)


def _around(fences: Iterable[FenceId], index: FenceIndex) -> set[FenceId]:
    return {above.fence_id for fence_id in fences for above in index.ancestors(fence_id)}


def _with_those_around(fence_id: FenceId, index: FenceIndex) -> list[FenceId]:
    return [fence_id, *(above.fence_id for above in index.ancestors(fence_id))]


def _removed(fence_id: FenceId) -> Fence:
    """Stands for a fence that no longer exists: of it only the id is still known."""
    return Fence(id=fence_id, store="", kind="vicinity", name="removed", geometry=Circle((0.0, 0.0), 1.0))


def _in_order(transitions: Sequence[Transition], index: FenceIndex) -> list[Transition]:
    """Sorted, and with the fences around theirs."""
    return [
        structs.replace(item, around=tuple(above.fence_id for above in index.ancestors(item.fence.fence_id)))
        if item.fence.fence_id in index.by_id
        else item
        for item in sorted(transitions, key=lambda transition: _place_in_order(transition, index))
    ]


def _place_in_order(transition: Transition, index: FenceIndex) -> tuple[int, int, str]:
    fence_id = transition.fence.fence_id
    depth = len(index.ancestors(fence_id)) if fence_id in index.by_id else 0
    return _ORDER[transition.kind], -depth if transition.kind == "exit" else depth, fence_id
