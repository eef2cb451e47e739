"""From fixes to transitions: enter, dwell and exit of one customer. A pure state machine in event time.

Fixes of one customer must come one at a time, in log order; `track` changes the customer's `Presence` in place. A fix
that is not newer than the last one is stale: it changes nothing. The rules:

* **enter** when a fix lies inside, its accuracy radius is no larger than the fence (`FenceIndex.reach_m`), and the
  customer is more likely inside than not. So a corner or an edge fires a step later, and a fix worse than the fence
  never does.
* **dwell** once per stay, at the first such fix `dwell_s` or more after the enter.
* **exit** when a fix lies farther outside than `exit_margin_m` and than three times its accuracy. Three times the
  68 % radius are 4.5 sigma: someone who stands still on an edge at one fix a second, with independent errors, is
  wrongly seen leaving about once in three days.
* Whoever is in a fence is in its parents: entering a department enters the store with it, a fix in the department
  counts as one in the store, and the store is left only when no fence in it is occupied.
* A fence that is no longer in the index is left at the next fix, with confidence 0: nobody moved.

Between the edge and the exit distance, and when a fix is too poor to tell, nothing changes.
"""

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
    accuracy_m = max(fix.accuracy_m, GPS_FLOOR_M) if fix.source == "gps" else fix.accuracy_m
    containing = {fence.fence_id for fence in inside}
    evidence = {
        fence_id
        for fence_id in containing
        if accuracy_m <= index.reach_m(fence_id)
        and (
            fence_id in presence.inside
            or index.probability(fence_id, fix.lat, fix.lng, accuracy_m) >= MIN_ENTER_CONFIDENCE
        )
    }
    gone = {fence_id for fence_id in presence.inside if fence_id not in index.by_id}
    left = {
        fence_id
        for fence_id in presence.inside.keys() - gone - containing
        if _has_left(index, fence_id, fix, accuracy_m)
    }
    around = _around((presence.inside.keys() - left - gone) | evidence, index)
    left -= around
    entered = (evidence | around) - presence.inside.keys()
    seen = (evidence | _around(evidence, index)) - entered

    transitions = [Transition("exit", _removed(fence_id), fix.ts, 0.0) for fence_id in gone]
    for fence_id in left:
        inside_still = index.probability(fence_id, fix.lat, fix.lng, accuracy_m)
        transitions.append(Transition("exit", index.by_id[fence_id], fix.ts, 1.0 - inside_still))
    for fence_id in gone | left:
        del presence.inside[fence_id]
    for fence_id in seen:
        stay = presence.inside[fence_id]
        stay.last_inside_ms = fix.ts
        if not stay.dwelled and fix.ts - stay.entered_ms >= index.by_id[fence_id].dwell_s * 1000:
            stay.dwelled = True
            confidence = _confidence(fence_id, evidence, fix, accuracy_m, index)
            transitions.append(Transition("dwell", index.by_id[fence_id], fix.ts, confidence))
    for fence_id in sorted(entered):
        presence.inside[fence_id] = Stay(entered_ms=fix.ts, last_inside_ms=fix.ts)
        confidence = _confidence(fence_id, evidence, fix, accuracy_m, index)
        transitions.append(Transition("enter", index.by_id[fence_id], fix.ts, confidence))
    return sorted(transitions, key=lambda transition: _place_in_order(transition, index))


def _around(fences: Set[FenceId], index: FenceIndex) -> set[FenceId]:
    return {above.fence_id for fence_id in fences for above in index.ancestors(fence_id)}


def _has_left(index: FenceIndex, fence_id: FenceId, fix: Location, accuracy_m: float) -> bool:
    needed_m = max(index.by_id[fence_id].exit_margin_m, EXIT_ACCURACIES * accuracy_m)
    return index.distance_m(fence_id, fix.lat, fix.lng) > needed_m


def _confidence(
    fence_id: FenceId, evidence: Set[FenceId], fix: Location, accuracy_m: float, index: FenceIndex
) -> float:
    """The probability of being in the fence, or in one inside it that the fix is evidence for, if that is larger."""
    within = [other for other in evidence if any(above.id == fence_id for above in index.ancestors(other))]
    return max(index.probability(one, fix.lat, fix.lng, accuracy_m) for one in (fence_id, *within))


def _removed(fence_id: FenceId) -> Fence:
    """Stands for a fence that no longer exists: of it only the id is still known."""
    return Fence(id=fence_id, store="", kind="vicinity", name="removed", geometry=Circle((0.0, 0.0), 1.0))


def _place_in_order(transition: Transition, index: FenceIndex) -> tuple[int, int, str]:
    fence_id = transition.fence.fence_id
    depth = len(index.ancestors(fence_id)) if fence_id in index.by_id else 0
    return _ORDER[transition.kind], -depth if transition.kind == "exit" else depth, fence_id
