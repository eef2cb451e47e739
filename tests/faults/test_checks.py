"""The checkers themselves: of good evidence they say nothing, and each of their sentences where there is a reason."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import msgspec
import pytest

from channels.delivery import Delivery
from nearcast import topics
from nearcast.customer import Customer, Presence
from nearcast.events import TOPIC_OF, Consent, encode
from nearcast.ids import partition_of
from nearcast.messages import Message
from server.log.base import Record
from server.state import Known
from tests.faults.checks import expected_of, violations
from tests.faults.evidence import Ends, Evidence
from tests.faults.traffic import PARTITIONS, Round
from tests.server.rig import Committed

_NOW_MS = 1_800_000_000_000


@pytest.fixture(scope="module")
def good() -> Evidence:
    """What is seen after a day without faults: made of what the oracle says of some customers' day."""
    town = Round(1, "r1", _NOW_MS, of_each=2, steps=6)
    ends = {(topic, number): 0 for topic in topics.CUSTOMER_TOPICS for number in range(PARTITIONS)}
    records = []
    for at_ms, sent in enumerate([*town.sign_up, *town.traffic], _NOW_MS):
        offset = str(ends[sent.topic, sent.partition])
        records.append(Record(sent.topic, sent.partition, offset, sent.key, sent.value, at_ms))
        ends[sent.topic, sent.partition] += 1
    return _seen_of(records, ends)


def _seen_of(records: list[Record], ends: Ends) -> Evidence:
    outcome = expected_of(records)
    messages = [entry for of_one in outcome.outbox.values() for entry in of_one if isinstance(entry, Message)]
    customers, presences = outcome.customers, outcome.presences
    return Evidence(
        records=records,
        ends=ends,
        offsets={partition: outcome.offsets.get(partition, {}) for partition in range(PARTITIONS)},
        committed=Committed(
            customers={
                name: Known(customers.get(name, Customer(id=name)), presences.get(name, Presence()))
                for name in customers.keys() | presences.keys()
            },
            decisions={decision.id: decision for of_one in outcome.decisions.values() for decision in of_one},
            outbox=[],
            dead_letters=[
                {name.encode(): str(getattr(burial, name)).encode() for name in ("topic", "position", "reason", "key")}
                for burial in outcome.dead_letters
            ],
        ),
        timers=outcome.timers,
        outbox_added={partition: len(outcome.outbox.get(partition, ())) for partition in range(PARTITIONS)},
        outbox_left=dict.fromkeys(range(PARTITIONS), 0),
        deliveries={message.id: Delivery(state="sent") for message in messages},
        texts={
            message.id: {"To": cast("str", customers[message.customer].phone), "Body": f"text of {message.id}"}
            for message in messages
        },
        requests={message.id: 1 for message in messages},
    )


def test_of_good_evidence_nothing_is_said(good: Evidence) -> None:
    assert good.texts
    assert good.timers
    assert good.committed.dead_letters
    assert violations(good, good.records, repeats=False) == []


def test_what_was_acknowledged_and_is_not_in_the_log_is_lost(good: Evidence) -> None:
    (first, *_), last = good.records, good.records[-1]
    others_bytes = msgspec.structs.replace(first, value=b"{}")
    beyond = msgspec.structs.replace(last, position=str(good.ends[last.topic, last.partition]))
    assert _kinds(violations(good, [others_bytes, beyond])) == ["lost:", "lost:"]


def test_offsets_short_of_the_end_are_told(good: Evidence) -> None:
    offsets = {**good.offsets, 0: _but_the_first(good.offsets[0])}
    assert _said_of(good, offsets=offsets) == ["offsets:"]


def test_another_customer_is_told(good: Evidence) -> None:
    """What is known of one is gone, of their cart or of where they are."""
    customers = good.committed.customers
    carter = next(name for name, known in customers.items() if known.customer.cart)
    walker = next(name for name, known in customers.items() if known.presence.inside)
    emptied = Known(msgspec.structs.replace(customers[carter].customer, cart={}), customers[carter].presence)
    assert _said_of_store(good, customers={**customers, carter: emptied}) == ["customer"]
    nowhere = Known(customers[walker].customer, Presence())
    assert set(_said_of_store(good, customers={**customers, walker: nowhere})) == {"presence"}


def test_another_decision_is_told(good: Evidence) -> None:
    """One is missing, or one too many, or other than it should be."""
    decisions = good.committed.decisions
    some = next(iter(decisions.values()))
    assert _said_of_store(good, decisions=_but_the_first(decisions)) == ["decision"]
    assert _said_of_store(good, decisions={**decisions, "another": some}) == ["decision"]
    assert _said_of_store(good, decisions=_with_first(decisions, msgspec.structs.replace(some, at_ms=0))) == [
        "decision"
    ]


def test_other_dead_letters_are_told(good: Evidence) -> None:
    letters = good.committed.dead_letters
    for others in (letters[1:], [*letters, letters[0]], [{**letters[0], b"reason": b"other"}, *letters[1:]]):
        assert _said_of_store(good, dead_letters=others) == ["dead"]


def test_other_timers_are_told(good: Evidence) -> None:
    assert _said_of(good, timers=_but_the_first(good.timers)) == ["timer"]
    assert _said_of(good, timers=_with_first(good.timers, 1)) == ["timer"]


def test_an_outbox_that_got_too_much_or_is_not_empty_is_told(good: Evidence) -> None:
    assert _said_of(good, outbox_added=_with_first(good.outbox_added, 1_000)) == ["outbox:"]
    assert _said_of(good, outbox_left=_with_first(good.outbox_left, 1)) == ["outbox:"]


def test_texts_are_held_against_the_messages(good: Evidence) -> None:
    """One never came, one nobody decided, one went to somebody else, one came twice."""
    (key, form), *_ = good.texts.items()
    assert _said_of(good, texts=_but_the_first(good.texts)) == ["unsent:"]
    assert _said_of(good, texts={**good.texts, "another": {"To": form["To"], "Body": "another"}}) == ["undecided:"]
    assert _said_of(good, texts=_with_first(good.texts, {**form, "To": "+43"})) == ["misled:"]
    assert _said_of(good, texts={**good.texts, f"{key} again": form}) == ["undecided:", "twice:"]


def test_a_delivery_that_did_not_end_as_sent_is_told(good: Evidence) -> None:
    assert _said_of(good, deliveries=_but_the_first(good.deliveries)) == ["delivery:"]
    for state in ("failed", "recalled"):
        assert _said_of(good, deliveries=_with_first(good.deliveries, Delivery(state=state))) == ["delivery:"]


def test_a_delivery_may_end_as_recalled_where_the_outbox_should_have_held_that(good: Evidence) -> None:
    """A customer wants nothing any more, right after the decision: that message may be recalled, and none of others."""
    outbox = [entry for of_one in expected_of(good.records).outbox.values() for entry in of_one]
    message, *others = [entry for entry in outbox if isinstance(entry, Message)]
    place = TOPIC_OF[Consent], partition_of(message.customer, PARTITIONS)
    offset = good.ends[place]
    gone = Consent(id="gone", uid=message.customer, ts=message.at_ms + 1, scope="all", granted=False)
    arrived_ms = good.records[-1].arrived_ms + 1
    record = Record(*place, str(offset), message.customer, encode(gone), arrived_ms)
    seen = _seen_of([*good.records, record], {**good.ends, place: offset + 1})
    assert violations(seen, seen.records, repeats=False) == []
    recalled = Delivery(state="recalled")
    assert _said_of(seen, deliveries={**seen.deliveries, message.id: recalled}) == []
    strangers = [other.id for other in others if other.customer != message.customer]
    assert strangers
    for stranger in strangers:
        assert _said_of(seen, deliveries={**seen.deliveries, stranger: recalled}) == ["delivery:"]


def test_a_second_request_is_told_where_there_was_no_reason_for_one(good: Evidence) -> None:
    assert _said_of(good, requests=_with_first(good.requests, 2)) == ["asked:"]
    assert violations(replace(good, requests=_with_first(good.requests, 2)), good.records) == []


def test_of_each_kind_no_more_is_said_than_anyone_reads(good: Evidence) -> None:
    sentences = violations(good, [msgspec.structs.replace(good.records[0], value=b"")] * 25)
    assert len(sentences) == 21
    assert sentences[-1] == "lost: ... and 5 more"


def _said_of(good: Evidence, **changes: Any) -> list[str]:
    """The first word of each sentence about evidence changed in this way."""
    return _kinds(violations(replace(good, **changes), good.records, repeats=False))


def _said_of_store(good: Evidence, **changes: Any) -> list[str]:
    return _said_of(good, committed=msgspec.structs.replace(good.committed, **changes))


def _kinds(sentences: list[str]) -> list[str]:
    return [sentence.split()[0] for sentence in sentences]


def _but_the_first(facts: Mapping[Any, Any]) -> dict[Any, Any]:
    return dict(list(facts.items())[1:])


def _with_first(facts: Mapping[Any, Any], value: Any) -> dict[Any, Any]:
    """The first of them is this now."""
    return {**facts, next(iter(facts)): value}
