"""Identifiers: deterministic, collision-free in practice, and the partitioner Kafka's producers use."""

import re

from aiokafka.partitioner import murmur2
from hypothesis import given
from hypothesis import strategies as st

from nearcast.ids import (
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
    """Another event, trigger, subject or set of rules is another decision; the same is the same."""
    base = decision_id(EventId("e"), "enter", "f", "r")
    assert base == decision_id(EventId("e"), "enter", "f", "r")
    others = {
        decision_id(EventId("e2"), "enter", "f", "r"),
        decision_id(EventId("e"), "exit", "f", "r"),
        decision_id(EventId("e"), "enter", "g", "r"),
        decision_id(EventId("e"), "enter", "f", "r2"),
        decision_id(EventId("ee"), "nter", "f", "r"),
    }
    assert base not in others
    assert len(others) == 5
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
