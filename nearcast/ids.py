"""Identifiers: what each is called, and how the derived ones are made.

Ids that nearcast derives are deterministic: the same event replayed gives the same decision id, the same
message id and the same coupon code, so a replay can't send or mint twice.
"""

import base64
import hashlib
import hmac
from typing import NewType

CustomerId = NewType("CustomerId", str)
StoreId = NewType("StoreId", str)
FenceId = NewType("FenceId", str)
Sku = NewType("Sku", str)
PromotionId = NewType("PromotionId", str)
EventId = NewType("EventId", str)
DecisionId = NewType("DecisionId", str)
MessageId = NewType("MessageId", str)
CouponCode = NewType("CouponCode", str)

ANONYMOUS_PREFIX = "anon:"

# Crockford's base 32: no I, L, O or U, so a code survives being read aloud or typed at a till.
_RFC4648 = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
_CROCKFORD = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_TO_CROCKFORD = bytes.maketrans(_RFC4648, _CROCKFORD)
_TYPED = str.maketrans("ILO", "110", "- ")


def customer_id(uid: str | None, anonymous_id: str | None) -> CustomerId:
    """The key of a customer's state: the retailer's `uid`, or the device's anonymous id until sign-in."""
    if uid:
        return CustomerId(uid)
    if anonymous_id:
        return CustomerId(ANONYMOUS_PREFIX + anonymous_id)
    raise ValueError("an event needs `uid` or `anonymous_id`")


def decision_id(
    customer: CustomerId, event: EventId, trigger: str, subject: str, at_ms: int, rules_version: str
) -> DecisionId:
    """128 bits that name one decision: same customer, event, moment and rules, same id.

    Event ids come from clients, who may use one for two customers, or again later; so they alone don't suffice.
    """
    return DecisionId(_digest("decision", customer, event, trigger, subject, str(at_ms), rules_version))


def message_id(decision: DecisionId, audience: str) -> MessageId:
    """The message that a decision sends to one audience ("customer" or "staff")."""
    return MessageId(_digest("message", decision, audience))


def derived_event_id(*parts: str) -> EventId:
    """An id for an event that came without one, or that nearcast itself emits."""
    return EventId(_digest("event", *parts))


def coupon_code(secret: bytes, decision: DecisionId) -> CouponCode:
    """A 100-bit code, 20 characters of Crockford base 32, unguessable without `secret`.

    Deterministic per decision: applying twice, or replaying, gives the same code.
    """
    mac = hmac.new(secret, b"coupon\x00" + decision.encode(), hashlib.sha256).digest()
    return CouponCode(base64.b32encode(mac[:15]).translate(_TO_CROCKFORD)[:20].decode())


def normalise_code(typed: str) -> CouponCode:
    """What a till operator typed, as the code it stands for (case, dashes, spaces, I/L/O forgiven)."""
    return CouponCode(typed.upper().translate(_TYPED))


def place_of(*parts: str) -> float:
    """A number from 0 to below 1, the same for the same parts, evenly spread and unrelated for others.

    For stable shares of customers, and for chance that a replay meets again.
    """
    digest = hashlib.blake2b("\x1f".join(parts).encode(), digest_size=8).digest()
    # A float has 53 bits.
    return (int.from_bytes(digest, "big") >> 11) / 2**53


def partition_of(key: str, partitions: int) -> int:
    """The partition of a key, as Kafka's own default partitioner computes it (murmur2).

    Both event logs use it, so a customer's state lives where any Kafka producer with the Java-compatible
    partitioner (librdkafka: `partitioner=murmur2_random`) sends its events.
    """
    return (_murmur2(key.encode()) & 0x7FFFFFFF) % partitions


def _digest(*parts: str) -> str:
    # The separator can't occur in an id (control characters are refused at intake), so parts can't run together.
    return hashlib.blake2b("\x1f".join(parts).encode(), digest_size=16).hexdigest()


def _murmur2(data: bytes) -> int:
    """MurmurHash2, 32 bit, seed 0x9747b28c: org.apache.kafka.common.utils.Utils.murmur2."""
    m, mask = 0x5BD1E995, 0xFFFFFFFF
    length = len(data)
    h = 0x9747B28C ^ length
    tail = length & ~3
    for i in range(0, tail, 4):
        k = int.from_bytes(data[i : i + 4], "little") * m & mask
        k = (k ^ k >> 24) * m & mask
        h = h * m & mask ^ k
    rest = data[tail:]
    if rest:
        h = (h ^ int.from_bytes(rest, "little")) * m & mask
    h = (h ^ h >> 13) * m & mask
    return h ^ h >> 15
