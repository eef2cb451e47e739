"""Footfall: how many people are in each fence now, and visits by fence and hour.

Counted in the engine's commit, together with the stays that are counted, so nothing counts twice after a crash: a
fence's live count is the number of stays in it in the store. Kept by partition and summed when read. No key of this
names a customer.

A visit is an enter with a confidence of at least `MIN_VISIT_CONFIDENCE`. Visits, and the time people stayed, count in
the hour in which the stay began, by the store's clock; so all figures of an hour are about the same visits. A stay that
ends because its customer is erased or withdraws consent adds no time, nor does one whose fence was deleted.

What is shown is k-anonymous by rounding to base k: a count below k is withheld, zero included, and any other is shown
as the next lower multiple of k. So two figures that are shown differ by nothing or by k at least, and a difference of
them (a department from its store) can't give away a small group. A mean stay is of k stays or more, rounded to
`MEAN_STEP_S`.
"""

from collections.abc import Iterable, Mapping, Sequence, Set
from datetime import UTC, date, datetime, timedelta
from typing import NamedTuple
from zoneinfo import ZoneInfo

import msgspec
from redis.asyncio import Redis

from nearcast import keys
from nearcast.customer import Stay
from nearcast.errors import InputError
from nearcast.ids import FenceId, StoreId
from nearcast.moments import Transition
from nearcast.world import Fence, Store
from server.store import reaching_store, text

MIN_VISIT_CONFIDENCE = 0.5
DEFAULT_K = 5
DEFAULT_DAYS = 400
MEAN_STEP_S = 10
#: Most of a history in one answer.
MOST_DAYS, MOST_ROWS = 92, 60_000
_HOUR_S = 3_600
_SEPARATOR = "\x1f"
#: What is counted of an hour: visits, stays that have ended, and how long those took in seconds.
VISITS, ENDED, STAYED = "v", "e", "s"

#: A day of a store: (store, local date).
Day = tuple[str, str]


class Hour(NamedTuple):
    """One hour of a store's clock: its local date, and when it begins in seconds. Both passes of an hour that a clock
    goes through twice are hours of their own."""

    day: str
    begins_s: int


def hour_of(at_ms: int, zone: ZoneInfo) -> Hour:
    """The hour of the clock in a time zone that a time is in."""
    local = datetime.fromtimestamp(at_ms / 1000, zone)
    past = timedelta(minutes=local.minute, seconds=local.second, microseconds=local.microsecond)
    begins = local.astimezone(UTC) - past
    return Hour(begins.astimezone(zone).date().isoformat(), round(begins.timestamp()))


class Counts(msgspec.Struct):
    """What a commit adds: to people by fence, and to a store's day by field."""

    live: dict[FenceId, int] = {}
    days: dict[Day, dict[str, int]] = {}

    def moved(
        self,
        before: Mapping[FenceId, Stay],
        after: Mapping[FenceId, Stay],
        transitions: Iterable[Transition],
        stores: Mapping[StoreId, Store],
    ) -> None:
        """Count stays that ended and began. Marks those that it counts: only they are taken away again, so stays of
        before there was footfall do no harm."""
        ended = {fence: stay for fence, stay in before.items() if after.get(fence) is not stay}
        begun = {fence: stay for fence, stay in after.items() if before.get(fence) is not stay}
        for transition in transitions:
            fence = transition.fence.fence_id
            store = stores.get(transition.fence.store_id)
            if store is None:
                # Only the id of a removed fence is still known.
                continue
            if transition.kind == "enter" and fence in begun and _is_visit(begun[fence]):
                self._add(store, begun[fence].entered_ms, VISITS, fence, 1)
            elif transition.kind == "exit" and fence in ended and ended[fence].counted and _is_visit(ended[fence]):
                entered_ms = ended[fence].entered_ms
                self._add(store, entered_ms, ENDED, fence, 1)
                self._add(store, entered_ms, STAYED, fence, max(0, transition.at_ms - entered_ms) // 1000)
        self.forgotten(ended)
        for fence, stay in begun.items():
            stay.counted = True
            self._count(fence, 1)

    def forgotten(self, stays: Mapping[FenceId, Stay]) -> None:
        """Stays that are over without a word about when and how."""
        for fence, stay in stays.items():
            if stay.counted:
                self._count(fence, -1)

    def _count(self, fence: FenceId, people: int) -> None:
        count = self.live.pop(fence, 0) + people
        if count:
            self.live[fence] = count

    def _add(self, store: Store, at_ms: int, what: str, fence: FenceId, amount: int) -> None:
        hour = hour_of(at_ms, ZoneInfo(store.time_zone))
        fields = self.days.setdefault((store.id, hour.day), {})
        field = f"{hour.begins_s}{_SEPARATOR}{what}{_SEPARATOR}{fence}"
        fields[field] = fields.get(field, 0) + amount


def _is_visit(stay: Stay) -> bool:
    return stay.confidence >= MIN_VISIT_CONFIDENCE


def expires_s(day: str, kept_days: int) -> int:
    """When the figures of a local date go, in seconds. A day later than the date says: clocks differ."""
    return round(datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp()) + (kept_days + 1) * 24 * _HOUR_S


class Visits(msgspec.Struct):
    """What was counted of one fence and hour."""

    visits: int = 0
    ended: int = 0
    stayed_s: int = 0


class FootfallBook:
    """Reads what the engines counted."""

    def __init__(self, redis: Redis, partitions: int) -> None:
        self._redis = redis
        self._partitions = partitions

    async def live(self, fences: Sequence[FenceId]) -> dict[FenceId, int]:
        """How many people are in each of these fences."""
        if not fences:
            return {}
        with reaching_store():
            pipe = self._redis.pipeline(transaction=False)
            for partition in range(self._partitions):
                pipe.hmget(keys.footfall(partition), fences)
            answers = await pipe.execute()
        return {
            fence: sum(int(count or 0) for count in counts) for fence, *counts in zip(fences, *answers, strict=True)
        }

    async def days(self, store: StoreId, days: Set[str]) -> dict[tuple[FenceId, int], Visits]:
        """By fence and begin of the hour in seconds, all that was counted on local dates."""
        names = [keys.footfall_day(partition, store, day) for day in days for partition in range(self._partitions)]
        found: dict[tuple[FenceId, int], Visits] = {}
        with reaching_store():
            pipe = self._redis.pipeline(transaction=False)
            for name in names:
                pipe.hgetall(name)
            answers = await pipe.execute() if names else []
        for fields in answers:
            for field, amount in fields.items():
                begins_s, what, fence = text(field).split(_SEPARATOR, 2)
                counted = found.setdefault((FenceId(fence), int(begins_s)), Visits())
                if what == VISITS:
                    counted.visits += int(amount)
                elif what == ENDED:
                    counted.ended += int(amount)
                else:
                    counted.stayed_s += int(amount)
        return found


class Zone(msgspec.Struct, frozen=True, kw_only=True):
    """A fence, and how many people are in it, as it may be shown."""

    fence: FenceId
    name: str
    kind: str
    parent: str | None
    #: None: fewer than k, perhaps nobody; `withheld` says so.
    people: int | None
    withheld: str | None


class Live(msgspec.Struct, frozen=True, kw_only=True):
    """How many people are where in a store."""

    store: StoreId
    at_ms: int
    k: int
    zones: list[Zone]


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """The visits of one fence that began in one hour, as they may be shown."""

    fence: FenceId
    name: str
    #: The begin of the hour, ISO 8601 with the store's offset from UTC.
    hour: str
    visits: int | None
    #: Of those visits that are over, if they are k at least.
    mean_stay_s: int | None
    withheld: str | None


class History(msgspec.Struct, frozen=True, kw_only=True):
    """Visits by fence and hour."""

    store: StoreId
    time_zone: str
    k: int
    hours: list[Row]


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """Which history: local dates, both included, and one fence or all of the store but products' displays."""

    first: date | None = None
    last: date | None = None
    fence: FenceId | None = None

    def hours(self, store: Store, fences: int, now_ms: int) -> list[Hour]:
        """The hours asked for that have begun. Raises `InputError` if they are too many, or none by mistake."""
        zone = ZoneInfo(store.time_zone)
        last = self.last or datetime.fromtimestamp(now_ms / 1000, zone).date()
        first = self.first or last - timedelta(days=6)
        days = (last - first).days + 1
        if days < 1:
            raise InputError("malformed_range", "`to` lies before `from`", "query.to")
        if days > MOST_DAYS or days * 24 * fences > MOST_ROWS:
            most = f"at most {MOST_DAYS} days, and {MOST_ROWS} rows (hours times fences)"
            raise InputError("range_too_large", f"{most} at once: ask for fewer days, or for one fence", "query.from")
        return hours_of(first, last, now_ms, zone)


def live_of(store: StoreId, fences: Iterable[Fence], people: Mapping[FenceId, int], k: int, at_ms: int) -> Live:
    """What may be shown of who is where."""
    zones = []
    for fence in fences:
        count = shown(people.get(fence.fence_id, 0), k)
        zones.append(
            Zone(
                fence=fence.fence_id,
                name=fence.name,
                kind=fence.kind,
                parent=fence.parent,
                people=count,
                withheld=_withheld(count, k),
            )
        )
    return Live(store=store, at_ms=at_ms, k=k, zones=zones)


def history_of(
    store: Store,
    names: Mapping[FenceId, str],
    hours: Iterable[Hour],
    found: Mapping[tuple[FenceId, int], Visits],
    k: int,
) -> History:
    """What may be shown of the visits to these fences: one row for each fence and hour, also where nobody came."""
    zone, rows = ZoneInfo(store.time_zone), []
    for hour in hours:
        begins = datetime.fromtimestamp(hour.begins_s, zone).isoformat()
        for fence, name in names.items():
            counted = found.get((fence, hour.begins_s), _NONE)
            visits = shown(counted.visits, k)
            mean_s = None if visits is None else mean_shown_s(counted, k)
            withheld = _withheld(visits, k)
            rows.append(Row(fence=fence, name=name, hour=begins, visits=visits, mean_stay_s=mean_s, withheld=withheld))
    return History(store=store.store_id, time_zone=store.time_zone, k=k, hours=rows)


_NONE = Visits()


def _withheld(count: int | None, k: int) -> str | None:
    return f"fewer than {k}" if count is None else None


def shown(count: int, k: int) -> int | None:
    """A count as it may be shown: the next lower multiple of k, and None below k."""
    return count - count % k if count >= k else None


def mean_shown_s(counted: Visits, k: int) -> int | None:
    """The mean stay of visits that are over, in steps of `MEAN_STEP_S`; None if those are fewer than k."""
    if counted.ended < k:
        return None
    return round(counted.stayed_s / counted.ended / MEAN_STEP_S) * MEAN_STEP_S


def hours_of(first: date, last: date, until_ms: int, zone: ZoneInfo) -> list[Hour]:
    """Every hour of these local dates that has begun at `until_ms`, in order."""
    # Half an hour at a time: there are zones, and changes of the clock, of half an hour.
    at = datetime(first.year, first.month, first.day, tzinfo=zone).astimezone(UTC)
    begins_ms = round(at.timestamp() * 1000)
    end = datetime(last.year, last.month, last.day, tzinfo=zone) + timedelta(days=1)
    end_ms = min(round(end.astimezone(UTC).timestamp() * 1000), until_ms + 1)
    hours = (hour_of(at_ms, zone) for at_ms in range(begins_ms, end_ms, _HOUR_S * 500))
    return list(dict.fromkeys(hours))
