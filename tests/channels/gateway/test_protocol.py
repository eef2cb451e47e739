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


def effects(session: protocol.Session, *commands: object) -> list[protocol.Effect]:
    return list(session.receive("\n".join(json.dumps(command) for command in commands)))


def connected() -> protocol.Session:
    session = protocol.Session()
    session.accepted()
    return session


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
        {"id": 8, "publish": {"channel": "c", "data": {"a": 1}}},
        {"id": 9, "history": {"channel": "c", "limit": -1, "since": {"epoch": "e", "offset": 3}, "reverse": True}},
        {"id": 10, "history": {"channel": "c", "since": {}}},
        {"id": 11, "presence": {"channel": "c"}},
        {"id": 12, "presence_stats": {"channel": "c"}},
        {"id": 13, "subscribe": {"channel": "c", "recover": True, "epoch": "e", "offset": 3, "flag": 3}},
    ) == [
        protocol.Pong(),
        protocol.Subscribe(2, "c", Position("e", 3)),
        protocol.Subscribe(3, "c", None),
        protocol.Unsubscribe(4, "c"),
        protocol.Rpc(5, "ack", b'{"a": 1}'),
        protocol.Rpc(6, "ack", b"null"),
        protocol.Send(b"[1]"),
        protocol.Refresh(7, "t"),
        protocol.Publish(8, "c", b'{"a": 1}'),
        protocol.History(9, "c", -1, Position("e", 3), True),
        protocol.History(10, "c", 0, Position("", 0), False),
        protocol.Presence(11, "c", False),
        protocol.Presence(12, "c", True),
        protocol.Subscribe(13, "c", Position("e", 3), True),
    ]


@pytest.mark.parametrize(
    ("command", "code"), [({"publish": {"channel": "c", "type": 1}}, 108), ({"sub_refresh": {}}, 108), ({"x": {}}, 104)]
)
def test_commands_that_are_not_offered_say_so(command: dict[str, object], code: int) -> None:
    """Known but not offered is 108, unknown is 104; neither closes the connection."""
    [reply] = effects(connected(), {"id": 1, **command})
    assert isinstance(reply, protocol.Reply)
    assert json.loads(reply.data)["error"]["code"] == code


def test_a_frame_of_too_many_commands_is_not_read() -> None:
    """64 commands are carried out; a frame of more is a bad request, of which no line is looked at."""
    most = [protocol.Pong()] * protocol.MAX_COMMANDS
    assert list(connected().receive("\n".join(["{}"] * protocol.MAX_COMMANDS))) == most
    assert list(connected().receive("\n".join(["{}"] * (protocol.MAX_COMMANDS + 1)))) == [
        protocol.Close(codes.BAD_REQUEST)
    ]


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


def test_what_is_asked_is_answered_as_the_sdks_read_it() -> None:
    """Replies to publish, history and presence; the numbers are there even if they are 0."""
    listeners = {"a": "ann", "b": "ann"}
    found = [Publication(4, b'{"n": 1}'), Publication(6, b"2")]
    assert [
        json.loads(reply)
        for reply in (
            protocol.published(4),
            protocol.presence(5, listeners),
            protocol.presence_stats(6, listeners),
            protocol.presence_stats(7, {}),
            protocol.history(8, found, Position("e", 6)),
            protocol.history(9, [], Position("e", 0)),
        )
    ] == [
        {"id": 4, "publish": {}},
        {"id": 5, "presence": {"presence": {c: {"client": c, "user": "ann"} for c in "ab"}}},
        {"id": 6, "presence_stats": {"num_clients": 2, "num_users": 1}},
        {"id": 7, "presence_stats": {"num_clients": 0, "num_users": 0}},
        {"id": 8, "history": {"publications": [{"data": {"n": 1}, "offset": 4}, {"data": 2, "offset": 6}],
                              "epoch": "e", "offset": 6}},
        {"id": 9, "history": {"publications": [], "epoch": "e", "offset": 0}},
    ]  # fmt: skip


def test_news_of_subscriptions_and_the_end() -> None:
    """Pushes: the server has subscribed a client, unsubscribed it, and, where no close frame can say so, the end."""
    found = Recovered([], False, Position("e", 3))
    assert [
        json.loads(push)
        for push in (
            protocol.joined("store:s1", found),
            protocol.left("staff:s2", codes.SERVER_UNSUBSCRIBED),
            protocol.disconnected(codes.FORCED),
        )
    ] == [
        {"push": {"channel": "store:s1",
                  "subscribe": {"epoch": "e", "offset": 3, "recoverable": True, "positioned": True}}},
        {"push": {"channel": "staff:s2", "unsubscribe": {"code": 2000, "reason": "server unsubscribe"}}},
        {"push": {"disconnect": {"code": 3503, "reason": "force disconnect"}}},
    ]  # fmt: skip


def test_close_codes_tell_the_sdk_what_to_do() -> None:
    """Only what a client can't mend by connecting again is terminal; codes are unique and reasons fit a close frame."""
    terminal = {disconnect for disconnect in codes.DISCONNECTS if not disconnect.reconnect}
    assert terminal == {
        codes.INVALID_TOKEN,
        codes.BAD_REQUEST,
        codes.STALE,
        codes.FORCED,
        codes.CONNECTION_LIMIT,
    }
    for table in (codes.DISCONNECTS, codes.ERRORS):
        assert len({entry.code for entry in table}) == len(table)
    assert all(len(disconnect.reason) < 124 for disconnect in codes.DISCONNECTS)
