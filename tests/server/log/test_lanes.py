"""Records of several topics, read in pieces of any size, leave in the order of their arrival."""

from itertools import accumulate
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from nearcast.topics import ACTIONS, CARTS, LOCATIONS
from server.log.base import Record
from server.log.lanes import Lanes

TOPICS = (LOCATIONS, CARTS, ACTIONS)
PARTITIONS = 2

#: Of each topic and partition: how much later each record arrives than the one before it, in ms. A clock may go back.
GAPS = st.lists(
    st.lists(st.integers(-2, 5), max_size=30), min_size=len(TOPICS) * PARTITIONS, max_size=len(TOPICS) * PARTITIONS
)


@given(GAPS, st.integers(0, 2**32 - 1))
def test_nothing_overtakes_what_arrived_before_it(gaps: list[list[int]], seed: int) -> None:
    """Every record leaves once, in its topic's order; at the same time a fix leaves last."""
    logs = {
        (topic, partition): [
            Record(topic, partition, str(n), "k", b"", arrived_ms)
            for n, arrived_ms in enumerate(accumulate(gaps[len(TOPICS) * partition + number], initial=1_000))
        ][1:]
        for number, topic in enumerate(TOPICS)
        for partition in range(PARTITIONS)
    }
    lanes, chance = Lanes(), Random(seed)
    for partition in range(PARTITIONS):
        lanes.open(partition, TOPICS)
    read = dict.fromkeys(logs, 0)
    taken: list[list[Record]] = []
    while any(read[place] < len(log) for place, log in logs.items()) or lanes.waiting:
        for place, log in logs.items():
            count = chance.randint(0, 10)
            lanes.add(*place, log[read[place] : read[place] + count])
            read[place] = min(len(log), read[place] + count)
            lanes.at_end(*place, at_end=read[place] == len(log))
        room = chance.randint(1, 40)
        taken.append(lanes.take(room))
        assert len(taken[-1]) <= room
    for partition in range(PARTITIONS):
        turns: dict[str, list[tuple[int, int]]] = {}
        for topic in TOPICS:
            found = [
                (turn, record)
                for turn, records in enumerate(taken)
                for record in records
                if (record.topic, record.partition) == (topic, partition)
            ]
            assert [record for _, record in found] == logs[topic, partition]
            arrivals = accumulate((record.arrived_ms for _, record in found), max)
            turns[topic] = [(turn, at_ms) for (turn, _), at_ms in zip(found, arrivals, strict=True)]
        for one in TOPICS:
            for other in TOPICS:
                for turn, at_ms in turns[one]:
                    earlier = [
                        at for at, ms in turns[other] if ms < at_ms or (ms == at_ms and one == LOCATIONS != other)
                    ]
                    assert all(at <= turn for at in earlier)


def test_a_topic_that_was_not_read_yet_holds_the_others_up() -> None:
    """Until something is known of it, anything might have arrived there first."""
    lanes = Lanes()
    lanes.open(0, [CARTS, LOCATIONS])
    fix = Record(LOCATIONS, 0, "0", "k", b"", 5)
    lanes.add(LOCATIONS, 0, [fix])
    lanes.at_end(LOCATIONS, 0, at_end=True)
    assert lanes.take(10) == []
    assert lanes.waiting
    lanes.at_end(CARTS, 0, at_end=True)
    assert lanes.take(10) == [fix]
    assert not lanes.waiting
