"""A recording has the records of a customer in the order in which an engine works on them."""

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from itertools import accumulate

from hypothesis import given
from hypothesis import strategies as st

from nearcast.events import Consent
from nearcast.ids import CustomerId
from nearcast.topics import CUSTOMER_TOPICS
from server.batch import Item, in_order
from server.log.base import Record
from server.log.history import Place, merged
from server.log.lanes import Lanes

PARTITIONS = 2
PLACES = [(topic, partition) for topic in CUSTOMER_TOPICS for partition in range(PARTITIONS)]


class _Logs:
    """A `server.log.history.LogHistory` of what is there already, some records at a time."""

    def __init__(self, logs: Mapping[Place, Sequence[Record]], at_once: int) -> None:
        self._logs = logs
        self._at_once = at_once

    async def ends(self, topics: Sequence[str]) -> Mapping[Place, str]:
        return {place: log[-1].position for place, log in self._logs.items() if log and place[0] in topics}

    async def read(self, place: Place, since_ms: int | None, last: str) -> AsyncIterator[Sequence[Record]]:
        for first in range(0, len(self._logs[place]), self._at_once):
            yield self._logs[place][first : first + self._at_once]


@st.composite
def logs(draw: st.DrawFn) -> dict[Place, list[Record]]:
    """Of two customers in each partition; most records arrive at the same time as others."""
    made: dict[Place, list[Record]] = {}
    for topic, partition in PLACES:
        gaps = draw(st.lists(st.integers(0, 2), max_size=6))
        names = draw(st.lists(st.sampled_from("ab"), min_size=len(gaps), max_size=len(gaps)))
        made[topic, partition] = [
            Record(topic, partition, str(number), name, b"", at_ms)
            for number, (name, at_ms) in enumerate(zip(names, accumulate(gaps), strict=True))
        ]
    return made


def by_customer(records: Iterable[Record]) -> dict[tuple[int, str], list[Record]]:
    found: dict[tuple[int, str], list[Record]] = {}
    for record in records:
        found.setdefault((record.partition, record.key), []).append(record)
    return found


def worked_on(records: Sequence[Record]) -> list[Record]:
    """One batch, as the engine orders it."""
    event = Consent(uid="anybody", ts=1, scope="sms", granted=True)
    return [item.record for item in in_order([Item(record, event, CustomerId(record.key)) for record in records])]


@given(logs(), st.integers(1, 4), st.data())
async def test_the_order_of_the_engine(of: dict[Place, list[Record]], at_once: int, data: st.DataObject) -> None:
    """By arrival, fixes last, then by the topic's name; however the records are read and batched, live or recorded."""
    lanes = Lanes()
    for partition in range(PARTITIONS):
        lanes.open(partition, CUSTOMER_TOPICS)
    for place, log in of.items():
        lanes.add(*place, log)
        lanes.at_end(*place, at_end=True)
    live: list[Record] = []
    while lanes.waiting:
        live += worked_on(lanes.take(data.draw(st.integers(1, 20))))

    history = _Logs(of, at_once)
    recorded = [record async for record in merged(history, await history.ends(CUSTOMER_TOPICS), None)]
    assert len(recorded) == sum(map(len, of.values()))
    assert by_customer(recorded) == by_customer(live)

    replayed: list[Record] = []
    while len(replayed) < len(recorded):
        replayed += worked_on(recorded[len(replayed) : len(replayed) + data.draw(st.integers(1, 20))])
    assert by_customer(replayed) == by_customer(live)
