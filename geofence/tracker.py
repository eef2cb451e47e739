"""From fixes to transitions: enter, dwell and exit of one customer. A pure state machine in event time.

Fixes of one customer must come one at a time, in log order; `track` changes the customer's `Presence` in place. A fix
that is not newer than the last one is stale: it changes nothing. The rules:

* **enter** when a fix lies inside, its accuracy radius is no larger than the fence (`FenceIndex.reach_m`), and the
  customer is more likely inside than not. So a corner or an edge fires a step later, and a fix worse than the fence
  never does.
* **dwell** once per stay, at the first such fix `dwell_s` or more after the enter.
* A stay that no fix confirmed for `SILENCE_MS` is over: the next fix, whatever it says, first gives an **exit** at the
  time the customer was last seen inside, with `SILENT_EXIT_CONFIDENCE`. If they are inside (again or still), a fresh
  enter follows. So a dwell counts only time in sight, and an old stay can't make one.
* **exit** when a fix lies farther outside than `exit_margin_m` and than three times its accuracy. Three times the
  68 % radius are 4.5 sigma: someone who stands still on an edge at one fix a second, with independent errors, is
  wrongly seen leaving about once in three days. So its confidence is 1.
* Whoever is in a fence is in its parents: entering a department enters the store with it, a fix in the department
  counts as one in the store, and the store is left only when no fence in it is occupied.
* What needs no fix to happen is done by a timer (`next_due_ms`, `on_timer`): the end of a silent stay, and a **dwell**
  of someone who is inside and whose phone lies still, only as probable as `UNSEEN_DWELL_CONFIDENCE`.
* A fence that is no longer in the index is left at the next fix, with confidence 0: nobody moved.

Between the edge and the exit distance, and when a fix is too poor to tell, nothing changes.
"""

import math
from collections.abc import Sequence, Set

from geofence.index import FenceIndex
from nearcast.customer import Presence, Stay
from nearcast.events import Location
from nearcast.ids import FenceId
from nearcast.moments import Transition
from nearcast.world import Circle, Fence

#: An enter needs at least this probability of being inside.
MIN_ENTER_CONFIDENCE = 0.5
#: An exit needs this many accuracy radii between the fix and the fence.
EXIT_ACCURACIES = 3.0
#: Satellite positioning of a phone is not better than this, whatever it claims (some report 0 for "unknown").
GPS_FLOOR_M = 3.0

#: After this long out of sight we no longer claim to know where someone is: 15 minutes. Phones in the background report
#: every few minutes even when they save power, and a look around the neighbour's shop takes less than this.
SILENCE_MS = 15 * 60_000
#: Whether they left, or sat where no fix got through, is anyone's guess. By default offers don't act on that little.
SILENT_EXIT_CONFIDENCE = 0.4
#: A dwell without a fix: all that is known is that the customer came in, and was not seen leaving.
UNSEEN_DWELL_CONFIDENCE = 0.5

_ORDER = {"exit": 0, "enter": 1, "dwell": 2}


def track(presence: Presence, fix: Location, inside: Sequence[Fence], index: FenceIndex) -> list[Transition]:
    """What `fix` changes. `inside` are the fences of `index` that contain it, as `FenceIndex.match` says.

    Exits come first (inner fences before those around them), then enters (outer first), then dwells; equals by
    fence id.
    """
    if fix.ts <= presence.last_ms:
        return []
    presence.last_ms = fix.ts
    if not inside and not presence.inside:
        return []
    if _confirms(presence, fix, inside, index):
        return []
    transitions = _end_silent_stays(presence, fix.ts, index)
    chances = _Chances(fix, index)
    evidence = {
        fence.fence_id
        for fence in inside
        if chances.accuracy_m <= index.reach_m(fence.fence_id)
        # Who is in already needs no proof, and most fixes are theirs.
        and (fence.fence_id in presence.inside or chances.of(fence.fence_id) >= MIN_ENTER_CONFIDENCE)
    }
    containing = {fence.fence_id for fence in inside}
    gone = {fence_id for fence_id in presence.inside if fence_id not in index.by_id}
    left = {
        fence_id
        for fence_id in presence.inside.keys() - gone - containing
        if _has_left(index, fence_id, fix, chances.accuracy_m)
    }
    around = _around((presence.inside.keys() - left - gone) | evidence, index)
    left -= around
    entered = (evidence | around) - presence.inside.keys()
    seen = (evidence | _around(evidence, index)) - entered

    transitions += [Transition("exit", _removed(fence_id), fix.ts, 0.0) for fence_id in gone]
    transitions += [Transition("exit", index.by_id[fence_id], fix.ts, 1.0) for fence_id in left]
    for fence_id in gone | left:
        del presence.inside[fence_id]
    for fence_id in seen:
        stay = presence.inside[fence_id]
        stay.last_inside_ms = fix.ts
        if not stay.dwelled and fix.ts - stay.entered_ms >= _dwell_ms(index.by_id[fence_id]):
            stay.dwelled = True
            confidence = chances.supported(fence_id, evidence)
            transitions.append(Transition("dwell", index.by_id[fence_id], fix.ts, confidence))
    for fence_id in sorted(entered):
        presence.inside[fence_id] = Stay(entered_ms=fix.ts, last_inside_ms=fix.ts)
        confidence = chances.supported(fence_id, evidence)
        transitions.append(Transition("enter", index.by_id[fence_id], fix.ts, confidence))
    return sorted(transitions, key=lambda transition: _place_in_order(transition, index))


def next_due_ms(presence: Presence, index: FenceIndex) -> int:
    """When something will happen to the stays if no further fix comes; 0 if nothing will."""
    dues = []
    for fence_id, stay in presence.inside.items():
        dues.append(stay.last_inside_ms + SILENCE_MS + 1)
        if not stay.dwelled and fence_id in index.by_id:
            dues.append(stay.entered_ms + _dwell_ms(index.by_id[fence_id]))
    return min(dues, default=0)


def on_timer(presence: Presence, now_ms: int, index: FenceIndex) -> list[Transition]:
    """What happens at `now_ms` without a fix: silent stays end, and who is inside for long enough dwells.

    In the order of `track`. Does not look at `presence.last_ms`: a timer is no evidence of where anyone is.
    """
    transitions = _end_silent_stays(presence, now_ms, index)
    for fence_id, stay in presence.inside.items():
        fence = index.by_id.get(fence_id)
        if fence is not None and not stay.dwelled and now_ms - stay.entered_ms >= _dwell_ms(fence):
            stay.dwelled = True
            transitions.append(Transition("dwell", fence, now_ms, UNSEEN_DWELL_CONFIDENCE))
    return sorted(transitions, key=lambda transition: _place_in_order(transition, index))


def _confirms(presence: Presence, fix: Location, inside: Sequence[Fence], index: FenceIndex) -> bool:
    """Note what most fixes in a fence say: still in all of them, and nothing else. False if there is more to it.

    Leads to what the general case would lead to, which costs many times as much.
    """
    stays = presence.inside
    if len(stays) != len(inside):
        return False
    now_ms, accuracy_m = fix.ts, _accuracy_m(fix)
    for fence in inside:
        stay = stays.get(fence.fence_id)
        if (
            stay is None
            or now_ms - stay.last_inside_ms > SILENCE_MS
            or not (stay.dwelled or now_ms - stay.entered_ms < _dwell_ms(fence))
            or accuracy_m > index.reach_m(fence.fence_id)
        ):
            return False
    for stay in stays.values():
        stay.last_inside_ms = now_ms
    return True


def _dwell_ms(fence: Fence) -> int:
    """Times are whole milliseconds: a fix and the timer must agree on which of them is the first that counts."""
    return math.ceil(fence.dwell_s * 1000)


def _accuracy_m(fix: Location) -> float:
    return max(fix.accuracy_m, GPS_FLOOR_M) if fix.source == "gps" else fix.accuracy_m


class _Chances:
    """How probable it is that one fix is inside each fence; worked out when asked for, and only once."""

    def __init__(self, fix: Location, index: FenceIndex) -> None:
        self.accuracy_m = _accuracy_m(fix)
        self._fix = fix
        self._index = index
        self._known: dict[FenceId, float] = {}

    def of(self, fence_id: FenceId) -> float:
        chance = self._known.get(fence_id)
        if chance is None:
            chance = self._index.probability(fence_id, self._fix.lat, self._fix.lng, self.accuracy_m)
            self._known[fence_id] = chance
        return chance

    def supported(self, fence_id: FenceId, evidence: Set[FenceId]) -> float:
        """The chance of a fence, or of one inside it that the fix is evidence for, if that is larger."""
        within = [other for other in evidence if any(above.id == fence_id for above in self._index.ancestors(other))]
        return max(self.of(one) for one in (fence_id, *within))


def _end_silent_stays(presence: Presence, now_ms: int, index: FenceIndex) -> list[Transition]:
    transitions = []
    for fence_id, stay in list(presence.inside.items()):
        if now_ms - stay.last_inside_ms > SILENCE_MS:
            del presence.inside[fence_id]
            fence = index.by_id.get(fence_id) or _removed(fence_id)
            transitions.append(Transition("exit", fence, stay.last_inside_ms, SILENT_EXIT_CONFIDENCE))
    return transitions


def _around(fences: Set[FenceId], index: FenceIndex) -> set[FenceId]:
    return {above.fence_id for fence_id in fences for above in index.ancestors(fence_id)}


def _has_left(index: FenceIndex, fence_id: FenceId, fix: Location, accuracy_m: float) -> bool:
    needed_m = max(index.by_id[fence_id].exit_margin_m, EXIT_ACCURACIES * accuracy_m)
    return index.distance_m(fence_id, fix.lat, fix.lng) > needed_m


def _removed(fence_id: FenceId) -> Fence:
    """Stands for a fence that no longer exists: of it only the id is still known."""
    return Fence(id=fence_id, store="", kind="vicinity", name="removed", geometry=Circle((0.0, 0.0), 1.0))


def _place_in_order(transition: Transition, index: FenceIndex) -> tuple[int, int, str]:
    fence_id = transition.fence.fence_id
    depth = len(index.ancestors(fence_id)) if fence_id in index.by_id else 0
    return _ORDER[transition.kind], -depth if transition.kind == "exit" else depth, fence_id
