"""The shared timer and the rate limit, on a clock that moves by hand."""

from channels.gateway.limits import TokenBucket
from channels.gateway.wheel import Wheel
from nearcast.clock import ManualClock


class Bell:
    """Rings when due; `again_s` later once more."""

    def __init__(self, again_s: float | None = None) -> None:
        self.rang: list[float] = []
        self._again_s = again_s

    def due(self, now_s: float) -> float | None:
        self.rang.append(now_s)
        return None if self._again_s is None else now_s + self._again_s


class Broken:
    def due(self, now_s: float) -> float | None:
        raise RuntimeError("a bug")


def test_items_are_served_once_never_early_at_most_a_tick_late() -> None:
    """An item is served in the tick after its time, again when it asks for it, and a broken one harms no other."""
    clock = ManualClock()
    wheel = Wheel(clock, 0.5)
    once, often, moved, removed = Bell(), Bell(2.0), Bell(), Bell()
    wheel.add(Broken(), 1.0)
    wheel.add(once, 1.2)
    wheel.add(often, 1.0)
    wheel.add(moved, 1.0)
    wheel.add(moved, 3.0)
    wheel.add(removed, 1.0)
    wheel.remove(removed)
    wheel.remove(removed)
    for _ in range(60):
        clock.advance(100)
        wheel.turn()
    assert once.rang == [1.5]
    assert often.rang == [1.5, 4.0]
    assert moved.rang == [3.5]
    assert removed.rang == []


def test_what_is_already_due_is_served_at_the_next_turns() -> None:
    """An item added for the past is not forgotten, and a long pause is caught up with."""
    clock = ManualClock()
    wheel = Wheel(clock, 0.5)
    late, early = Bell(), Bell()
    clock.advance(10_000)
    wheel.add(early, 15.0)
    wheel.turn()
    wheel.add(late, 1.0)
    clock.advance(60_000)
    wheel.turn()
    assert late.rang == early.rang == [70.0]


def test_a_bucket_allows_a_burst_and_then_the_rate() -> None:
    """60 a minute: 60 at once, then one a second; idling saves up no more than a minute's worth."""
    clock = ManualClock()
    bucket = TokenBucket(60, clock)
    assert [bucket.take() for _ in range(61)] == [True] * 60 + [False]
    clock.advance(1000)
    assert [bucket.take(), bucket.take()] == [True, False]
    clock.advance(3_600_000)
    assert sum(bucket.take() for _ in range(100)) == 60
