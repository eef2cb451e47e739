"""Identifiers: deterministic, collision-free in practice, and the partitioner Kafka's producers use."""

import re

from aiokafka.partitioner import murmur2
from hypothesis import given
from hypothesis import strategies as st

from nearcast.ids import (
    CustomerId,
    DecisionId,
    EventId,
    coupon_code,
    decision_id,
    message_id,
    normalise_code,
    partition_of,
)


@given(st.text(max_size=40), st.integers(1, 1_000))
def test_partitioner_is_kafkas(key: str, partitions: int) -> None:
    """Our partition of a key is the one that Kafka's Java-compatible partitioner computes (oracle: aiokafka)."""
    assert partition_of(key, partitions) == (murmur2(key.encode()) & 0x7FFFFFFF) % partitions


def test_decision_ids_tell_everything_apart() -> None:
    """Another customer, event, trigger, time, subject or set of rules is another decision; the same is the same."""
    ann, bob, e = CustomerId("ann"), CustomerId("bob"), EventId("e")
    base = decision_id(ann, e, "enter", "f", 1, "r")
    assert base == decision_id(ann, e, "enter", "f", 1, "r")
    others = {
        decision_id(bob, e, "enter", "f", 1, "r"),
        decision_id(ann, EventId("e2"), "enter", "f", 1, "r"),
        decision_id(ann, e, "exit", "f", 1, "r"),
        decision_id(ann, e, "enter", "g", 1, "r"),
        decision_id(ann, e, "enter", "f", 2, "r"),
        decision_id(ann, e, "enter", "f", 1, "r2"),
        decision_id(ann, EventId("ee"), "nter", "f", 1, "r"),
    }
    assert base not in others
    assert len(others) == 7
    assert message_id(base, "customer") != message_id(base, "staff")


def test_coupon_codes() -> None:
    """A code has 100 bits in a readable alphabet, is the same on a retry and another under another secret."""
    code = coupon_code(b"secret", DecisionId("d1"))
    assert re.fullmatch(r"[0-9A-HJKMNP-TV-Z]{20}", code)
    assert code == coupon_code(b"secret", DecisionId("d1"))
    assert code != coupon_code(b"other", DecisionId("d1"))
    codes = {coupon_code(b"secret", DecisionId(str(n))) for n in range(20_000)}
    assert len(codes) == 20_000


@given(st.text(alphabet="0123456789ABCDEFGHJKMNPQRSTVWXYZ", min_size=20, max_size=20))
def test_typed_codes(code: str) -> None:
    """Lower case, dashes, spaces and the letters O, I and L for the digits are forgiven at the till."""
    typed = "-".join(code[i : i + 5] for i in range(0, 20, 5)).lower().replace("0", "o").replace("1", "l")
    assert normalise_code(f" {typed} ") == code
