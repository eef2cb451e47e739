"""Records that were read and not delivered yet: topics of one partition brought into the order of their arrival.

Topics are read side by side, so of a backlog one can be thousands of records ahead of another. A record is held back
here while a topic of its partition is known to have older ones that were not read yet; a topic that was read to its end
holds nobody up. What arrives in two topics within the same moment has no order that the log could tell.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterable, Sequence
from itertools import accumulate

import msgspec

from nearcast.topics import LOCATIONS
from server.log.base import Record

#: A list is cut at its front only now and then: that moves all the rest.
_CUT_AFTER = 4_096


class _Lane(msgspec.Struct):
    """One topic of one partition. `arrivals` never fall: within a topic the log's order counts, not its clock."""

    records: list[Record] = []
    arrivals: list[int] = []
    #: So many of them are delivered.
    taken: int = 0
    #: When the last record that was read arrived, in ms.
    latest_ms: int = 0
    #: Nothing more was there to be read.
    at_end: bool = False

    @property
    def size(self) -> int:
        return len(self.records) - self.taken

    def take(self, until: int) -> list[Record]:
        """The records up to an index."""
        found = self.records[self.taken : until]
        self.taken = until
        if until == len(self.records):
            self.records, self.arrivals, self.taken = [], [], 0
        elif until > _CUT_AFTER:
            del self.records[:until], self.arrivals[:until]
            self.taken = 0
        return found


class Lanes:
    """A worker's partitions. At equal times what changes a customer comes before where they are."""

    def __init__(self) -> None:
        self._partitions: dict[int, dict[str, _Lane]] = {}
        self._turn = 0

    def open(self, partition: int, topics: Iterable[str]) -> None:
        """Begin a partition anew, with these topics; nothing has been read of any."""
        self._partitions[partition] = {topic: _Lane() for topic in sorted(topics, key=_rank)}

    def clear(self) -> None:
        self._partitions.clear()

    def add(self, topic: str, partition: int, records: Sequence[Record]) -> None:
        """What was read next of a topic."""
        lane = self._partitions[partition][topic]
        arrivals = accumulate((record.arrived_ms for record in records), max, initial=lane.latest_ms)
        next(arrivals)
        lane.arrivals += arrivals
        lane.records += records
        if records:
            lane.latest_ms = lane.arrivals[-1]

    def at_end(self, topic: str, partition: int, *, at_end: bool) -> None:
        """Whether everything that the topic held, when it was last looked at, has been added."""
        self._partitions[partition][topic].at_end = at_end

    def size(self, topic: str, partition: int) -> int:
        """How many records of a topic are waiting."""
        return self._partitions[partition][topic].size

    @property
    def waiting(self) -> bool:
        """Whether there is anything, free to go or not."""
        return any(lane.records for lanes in self._partitions.values() for lane in lanes.values())

    def take(self, max_records: int) -> list[Record]:
        """Records whose turn has come: in order per topic, and everything older of their partition is among them or
        was delivered before. Partitions share the room; what one leaves goes to the others."""
        partitions = [lanes for lanes in self._partitions.values() if any(lane.records for lane in lanes.values())]
        if not partitions:
            return []
        # They take turns at being first.
        self._turn = (self._turn + 1) % len(partitions)
        partitions = partitions[self._turn :] + partitions[: self._turn]
        found: list[Record] = []
        share = max(1, max_records // len(partitions))
        for room in (share, max_records):
            for lanes in partitions:
                left = min(room, max_records - len(found))
                if left:
                    found += _take(lanes.items(), left)
        return found


def _rank(topic: str) -> tuple[bool, str]:
    return topic == LOCATIONS, topic


def _take(lanes: Collection[tuple[str, _Lane]], room: int) -> list[Record]:
    """At most `room` records of one partition."""
    unread = [lane for _, lane in lanes if not lane.at_end]
    ready: list[tuple[str, _Lane, int]] = []
    for topic, lane in lanes:
        if not lane.records:
            continue
        until = len(lane.arrivals)
        horizon_ms = min((other.latest_ms for other in unread if other is not lane), default=None)
        if horizon_ms is not None:
            # What is still to be read may have arrived in the same millisecond; then it goes before a fix.
            cut = bisect_left if topic == LOCATIONS else bisect_right
            until = cut(lane.arrivals, horizon_ms, lo=lane.taken)
        if until > lane.taken:
            ready.append((topic, lane, until))
    if sum(until - lane.taken for _, lane, until in ready) > room:
        ready = _shortened(ready, room)
    return [record for _, lane, until in ready for record in lane.take(until)]


def _shortened(ready: Sequence[tuple[str, _Lane, int]], room: int) -> list[tuple[str, _Lane, int]]:
    """The first `room` in order of arrival."""
    first: list[int] = []
    for _, lane, until in ready:
        first += lane.arrivals[lane.taken : min(until, lane.taken + room + 1)]
    first.sort()
    limit = first[room]
    # All that came before the first that has no room; then those that came with it, as many as there is room for.
    cuts = [min(until, bisect_left(lane.arrivals, limit, lo=lane.taken)) for _, lane, until in ready]
    left = room - sum(cut - lane.taken for cut, (_, lane, _) in zip(cuts, ready, strict=True))
    found = []
    for cut, (topic, lane, until) in zip(cuts, ready, strict=True):
        more = min(left, min(until, bisect_right(lane.arrivals, limit, lo=cut)) - cut)
        left -= more
        found.append((topic, lane, cut + more))
    return found
