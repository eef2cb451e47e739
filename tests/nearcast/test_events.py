"""Events on the wire: what is accepted, what is refused, and that a refusal says why."""

import contextlib
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nearcast import topics
from nearcast.errors import InputError
from nearcast.events import (
    MAX_AHEAD_MS,
    MAX_BATCH_EVENTS,
    MAX_EVENT_BYTES,
    TOPIC_OF,
    Location,
    Purchase,
    decode,
    decode_intake,
    encode,
    split_batch,
)

NOW = 1_750_000_000_000


def location(**fields: object) -> bytes:
    return json.dumps({"uid": "c1", "lat": 48.2, "lng": 16.37} | fields).encode()


@pytest.mark.parametrize("name", ["lng", "long", "lon"])
def test_longitude_names(name: str) -> None:
    """The common names of a longitude all mean the same."""
    event = decode(
        topics.LOCATIONS, json.dumps({"uid": "c1", "lat": 48.2, name: 16.37}).encode(), position="0:1", arrived_ms=NOW
    )
    assert isinstance(event, Location)
    assert (event.lat, event.lng) == (48.2, 16.37)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"lat": 90.0001}, "lat"),
        ({"lat": -91}, "lat"),
        ({"lng": 180.5}, "lng"),
        ({"lng": "16.37"}, "lng"),
        ({"lng": None}, "lng"),
        ({"lat": True}, "lat"),
        ({"long": 16.0}, "exactly one"),
        ({"accuracy_m": -1}, "accuracy_m"),
        ({"uid": ""}, "uid"),
        ({"uid": "a\nb"}, "uid"),
        ({"uid": "trailing\n"}, "uid"),
        ({"uid": "{tag}"}, "uid"),
        ({"uid": "x" * 129}, "uid"),
        ({"uid": None}, "uid"),
        ({"uid": "anon:"}, "anonymous"),
        ({"uid": "anon:d7"}, "anonymous"),
        ({"uid": None, "anonymous_id": "x" * 121}, "anonymous_id"),
        ({"ts": -1}, "ts"),
        ({"ts": 1.5}, "ts"),
        ({"ts": 1_750_000_000}, "milliseconds"),
        ({"ts": "2025-01-01"}, "ts"),
        ({"type": "cart"}, "type"),
        ({"source": "guess"}, "source"),
    ],
)
def test_bad_location_is_refused(fields: dict[str, object], said: str) -> None:
    """A wrong field is refused, and the reason names it."""
    with pytest.raises(InputError, match=said) as refused:
        decode(topics.LOCATIONS, location(**fields), position="0:1", arrived_ms=NOW)
    assert refused.value.reason == "malformed_event"


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_are_none(number: str) -> None:
    """NaN and infinities are no coordinates."""
    body = f'{{"uid": "c1", "lat": {number}, "lng": 1}}'.encode()
    with pytest.raises(InputError):
        decode(topics.LOCATIONS, body, position="0:1", arrived_ms=NOW)


@pytest.mark.parametrize(
    "body", [b"", b"null", b"[]", b"{", b'"x"', b"\xff\xfe", b"[" * 60_000, b'{"uid": "c1"}', b'{"uid":"c1","uid":2}']
)
def test_malformed_json(body: bytes) -> None:
    """Whatever isn't an event is refused, never an unexpected exception."""
    for topic in topics.CUSTOMER_TOPICS:
        with pytest.raises(InputError):
            decode(topic, body, position="0:1", arrived_ms=NOW)


@given(st.binary(max_size=300))
def test_any_bytes(body: bytes) -> None:
    """Random bytes are an event or an `InputError`."""
    for topic in topics.CUSTOMER_TOPICS:
        with contextlib.suppress(InputError):
            decode(topic, body, position="0:1", arrived_ms=NOW)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["items", "lat", "sku"]), inner),
    max_leaves=6,
)


@given(
    st.dictionaries(
        st.sampled_from(
            ["type", "uid", "lat", "lng", "long", "action", "sku", "items", "ts", "scope", "granted", "id"]
        ),
        _JSON | st.sampled_from(["location", "cart", "purchase", "action", "identify", "consent", "profile", "c1"]),
    )
)
def test_any_object(fields: dict[str, object]) -> None:
    """Objects with our field names and arbitrary values are accepted whole or refused with a reason."""
    body = json.dumps(fields).encode()
    with contextlib.suppress(InputError):
        event = decode_intake(body)
        assert event.customer
        assert decode_intake(encode(event)) == event


def test_too_large() -> None:
    """An event over the limit is refused before it is parsed."""
    with pytest.raises(InputError) as refused:
        decode(topics.LOCATIONS, b" " * (MAX_EVENT_BYTES + 1), position="0:1", arrived_ms=NOW)
    assert refused.value.reason == "event_too_large"


def test_future() -> None:
    """A clock that runs a minute fast is forgiven, one that runs faster is not."""
    accepted = decode(topics.LOCATIONS, location(ts=NOW + MAX_AHEAD_MS), position="0:1", arrived_ms=NOW)
    assert accepted.ts == NOW + MAX_AHEAD_MS
    with pytest.raises(InputError) as refused:
        decode(topics.LOCATIONS, location(ts=NOW + MAX_AHEAD_MS + 1), position="0:1", arrived_ms=NOW)
    assert refused.value.reason == "event_from_the_future"


def test_a_fast_clock_gives_no_lasting_consent() -> None:
    """A consent dated ahead of its arrival counts from its arrival."""
    body = json.dumps({"type": "consent", "uid": "c1", "scope": "sms", "granted": True, "ts": NOW + 50_000}).encode()
    assert decode(topics.ACTIONS, body, position="0:1", arrived_ms=NOW).ts == NOW


def test_defaults_come_from_the_log() -> None:
    """Without an id and a time, the record's place and arrival stand in, the same at each reading."""
    first = decode(topics.LOCATIONS, location(), position="3:17", arrived_ms=NOW)
    again = decode(topics.LOCATIONS, location(), position="3:17", arrived_ms=NOW)
    other = decode(topics.LOCATIONS, location(), position="3:18", arrived_ms=NOW)
    assert first == again
    assert first.ts == NOW
    assert first.id != other.id


def test_unknown_fields_are_ignored() -> None:
    """A producer may send more than we read."""
    event = decode(topics.LOCATIONS, location(battery=0.4, speed=1.2), position="0:1", arrived_ms=NOW)
    assert isinstance(event, Location)


def test_anonymous() -> None:
    """A visitor without a uid is a customer of their own; with a uid the uid counts."""
    event = decode_intake(b'{"type":"action","anonymous_id":"d7","action":"wifi_lookup"}')
    assert event.customer == "anon:d7"
    known = decode_intake(b'{"type":"action","anonymous_id":"d7","uid":"c1","action":"wifi_lookup"}')
    assert known.customer == "c1"


def test_internal_events_are_not_taken_from_outside() -> None:
    """Nobody outside can write receipts, timers, stitches or erasures."""
    for body in (
        b'{"type":"receipt","uid":"c1","message":"m","decision":"d","status":"redeemed"}',
        b'{"type":"timer","uid":"c1","kind":"cart_abandoned","due_ms":1}',
        b'{"type":"stitch","uid":"c1"}',
        b'{"type":"erase","uid":"c1"}',
    ):
        with pytest.raises(InputError):
            decode_intake(body)


def test_batch() -> None:
    """A batch is split without judging its events; its size is bounded."""
    assert len(split_batch(b'[{"type":"location"}, 1, "x"]')) == 3
    assert len(split_batch(json.dumps([0] * MAX_BATCH_EVENTS).encode())) == MAX_BATCH_EVENTS
    with pytest.raises(InputError) as refused:
        split_batch(json.dumps([0] * (MAX_BATCH_EVENTS + 1)).encode())
    assert refused.value.reason == "batch_too_large"
    with pytest.raises(InputError):
        split_batch(b'{"type":"location"}')


def test_purchase_needs_lines() -> None:
    """An empty purchase says nothing and is refused."""
    with pytest.raises(InputError):
        decode_intake(b'{"type":"purchase","uid":"c1","items":[]}')
    event = decode_intake(b'{"type":"purchase","uid":"c1","items":[{"sku":"s","amount_cents":199}]}')
    assert isinstance(event, Purchase)
    assert event.items[0].amount_cents == 199


def test_every_event_has_a_topic_that_reads_it() -> None:
    """What an event is written to can also decode it."""
    samples = {
        "location": {"lat": 1, "lng": 2},
        "cart": {"action": "clear"},
        "purchase": {"items": [{"sku": "s"}]},
        "action": {"action": "app_open"},
        "identify": {"anonymous_id": "d"},
        "consent": {"scope": "all", "granted": False},
        "profile": {},
        "erase": {},
        "receipt": {"message": "m", "decision": "d", "status": "sent"},
        "timer": {"kind": "k", "due_ms": 1},
        "stitch": {},
    }
    assert {event.__struct_config__.tag for event in TOPIC_OF} == set(samples)
    for event_type, topic in TOPIC_OF.items():
        tag = str(event_type.__struct_config__.tag)
        body = json.dumps({"type": tag, "uid": "c1"} | samples[tag]).encode()
        event = decode(topic, body, position="0:1", arrived_ms=NOW)
        assert type(event) is event_type
        assert decode(topic, encode(event), position="x", arrived_ms=NOW) == event


def test_location_never_holds_nan() -> None:
    """The placeholder for "not given" does not survive decoding."""
    event = decode_intake(b'{"type":"location","uid":"c","lat":1,"lng":2}')
    assert isinstance(event, Location)
    assert not math.isnan(event.lng)
    assert event.accuracy_m == 25.0
