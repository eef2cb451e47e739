"""The protocol state machine: whatever a client sends, the outcome is a known effect; what we send, an SDK can read."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from channels.gateway import codes, protocol
from channels.gateway.publications import Position, Publication, Recovered

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
_FIELDS = st.sampled_from(
    ["id", "connect", "subscribe", "unsubscribe", "rpc", "send", "refresh", "ping", "publish", "history", "token",
     "subs", "channel", "recover", "epoch", "offset", "method", "data"]
)  # fmt: skip
# Shaped like commands, so that many get past the decoder.
_COMMANDS = st.dictionaries(
    _FIELDS, _JSON | st.dictionaries(_FIELDS, _JSON | st.dictionaries(st.text(), st.dictionaries(_FIELDS, _JSON)))
)
_FRAMES = (
    st.text()
    | st.binary().map(lambda data: data.decode("utf-8", "replace"))
    | st.lists((_COMMANDS | _JSON).map(json.dumps), max_size=4).map("\n".join)
)


def effects(session: protocol.Session, *commands: object) -> list[protocol.Effect]:
    return list(session.receive("\n".join(json.dumps(command) for command in commands)))


def connected() -> protocol.Session:
    session = protocol.Session()
    session.accepted()
    return session


@given(frames=st.lists(_FRAMES, min_size=1, max_size=3), accepted=st.booleans())
def test_nothing_that_is_sent_raises(frames: list[str], accepted: bool) -> None:
    """Any text gives effects; replies are one line of JSON with an id; a close is a bad request, and the last."""
    session = connected() if accepted else protocol.Session()
    for frame in frames:
        found = list(session.receive(frame))
        assert found
        for place, effect in enumerate(found):
            if isinstance(effect, protocol.Close):
                assert effect.disconnect == codes.BAD_REQUEST
                assert place == len(found) - 1
            elif isinstance(effect, protocol.Reply):
                assert b"\n" not in effect.data
                assert json.loads(effect.data)["id"] > 0
            elif isinstance(effect, protocol.Subscribe | protocol.Unsubscribe):
                json.loads(protocol.push(effect.channel, Publication(1, b"0")))
            elif isinstance(effect, protocol.Rpc | protocol.Send):
                json.loads(effect.data)


def test_commands_become_effects() -> None:
    """What the SDKs send, as they send it."""
    first = {
        "id": 1,
        "connect": {
            "token": "t",
            "name": "js",
            "subs": {"a": {"recover": True, "epoch": "e", "offset": 3}, "b": {"offset": 9}},
        },
    }
    assert effects(protocol.Session(), first) == [protocol.Connect(1, "t", {"a": Position("e", 3)})]
    assert effects(
        connected(),
        {},
        {"id": 2, "subscribe": {"channel": "c", "recover": True, "epoch": "e", "offset": 3, "flag": 1}},
        {"id": 3, "subscribe": {"channel": "c"}},
        {"id": 4, "unsubscribe": {"channel": "c"}},
        {"id": 5, "rpc": {"method": "ack", "data": {"a": 1}}},
        {"id": 6, "rpc": {"method": "ack"}},
        {"send": {"data": [1]}},
        {"id": 7, "refresh": {"token": "t"}},
    ) == [
        protocol.Pong(),
        protocol.Subscribe(2, "c", Position("e", 3)),
        protocol.Subscribe(3, "c", None),
        protocol.Unsubscribe(4, "c"),
        protocol.Rpc(5, "ack", b'{"a": 1}'),
        protocol.Rpc(6, "ack", b"null"),
        protocol.Send(b"[1]"),
        protocol.Refresh(7, "t"),
    ]


@pytest.mark.parametrize("command", ["publish", "history", "presence", "presence_stats", "sub_refresh", "unheard_of"])
def test_commands_that_are_not_offered_say_so(command: str) -> None:
    """Known but not offered is 108, unknown is 104; neither closes the connection."""
    [reply] = effects(connected(), {"id": 1, command: {"channel": "c"}})
    assert isinstance(reply, protocol.Reply)
    assert json.loads(reply.data)["error"]["code"] == (104 if command == "unheard_of" else 108)


def test_a_command_after_connect_waits_for_its_outcome() -> None:
    """In one frame, an rpc after a connect is looked at only once the connect was accepted, and refused otherwise."""
    frame = '{"id":1,"connect":{"token":"t"}}\n{"id":2,"rpc":{"method":"m"}}'
    for accepted, second in ((True, protocol.Rpc(2, "m", b"null")), (False, protocol.Close(codes.BAD_REQUEST))):
        session = protocol.Session()
        run = session.receive(frame)
        next(run)
        if accepted:
            session.accepted()
        assert next(run) == second


@given(data=_JSON, channel=st.text(min_size=1).filter(str.isprintable))
def test_publications_read_back(data: Any, channel: str) -> None:
    """Any JSON, pretty-printed or not, arrives as it is in a push of one line."""
    publication = Publication(7, protocol.single_line(json.dumps(data, indent=1).encode()))
    pushed = protocol.push(channel, publication)
    assert b"\n" not in pushed
    read = json.loads(pushed)
    assert json.dumps(read["push"]) == json.dumps({"channel": channel, "pub": {"data": data, "offset": 7}})


def test_a_connect_reply_has_what_the_sdks_read() -> None:
    """Recovered publications are there only where the client asked; offset and epoch always."""
    found = Recovered([Publication(2, b'"b"')], True, Position("e", 2))
    first = Recovered([], False, Position("f", 0))
    data = protocol.connected(
        1, client="id", version="v", ttl_s=60, ping_s=25, subs={"a": (True, found), "b": (False, first)}
    )
    assert json.loads(data) == {
        "id": 1,
        "connect": {
            "client": "id", "version": "v", "expires": True, "ttl": 60, "ping": 25, "pong": True,
            "subs": {
                "a": {
                    "epoch": "e", "offset": 2, "recoverable": True, "positioned": True, "was_recovering": True,
                    "recovered": True, "publications": [{"data": "b", "offset": 2}],
                },
                "b": {"epoch": "f", "offset": 0, "recoverable": True, "positioned": True},
            },
        },
    }  # fmt: skip


def test_close_codes_tell_the_sdk_what_to_do() -> None:
    """Only what a client can't mend by connecting again is terminal; codes are unique and reasons fit a close frame."""
    terminal = {disconnect for disconnect in codes.DISCONNECTS if not disconnect.reconnect}
    assert terminal == {codes.INVALID_TOKEN, codes.BAD_REQUEST, codes.STALE}
    for table in (codes.DISCONNECTS, codes.ERRORS):
        assert len({entry.code for entry in table}) == len(table)
    assert all(len(disconnect.reason) < 124 for disconnect in codes.DISCONNECTS)
