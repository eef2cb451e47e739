"""The Centrifuge client protocol, JSON form, version 2, without any I/O: text frames in, effects and reply bytes out.

A frame holds one or more commands, a JSON object per line. `Session.receive` yields one effect per command, in order
and lazily: carry out an effect before asking for the next, because a command's meaning depends on whether the `connect`
before it was accepted. Nothing that a client can send raises; the worst outcome is a `Close` effect, which is the last.
"""

from collections.abc import Iterator, Mapping
from typing import Annotated, NamedTuple

import msgspec

from channels.gateway.codes import BAD_REQUEST, METHOD_NOT_FOUND, NOT_AVAILABLE, Disconnect, ErrorCode
from channels.gateway.publications import Position, Publication, Recovered

PING = b"{}"
#: A frame of more commands is a bad request: SDKs send a connect together with its subscriptions, and little else.
MAX_COMMANDS = 64
#: The bit of a subscription's flags that asks for an error rather than for a subscription with a hole.
_REJECT_UNRECOVERED = 2

# Offsets above 2^53 are no longer exact in JavaScript, nor in the store's scripts.
_Offset = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
_CommandId = Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)]
_Channel = Annotated[str, msgspec.Meta(min_length=1, max_length=255)]


class Connect(NamedTuple):
    """Check the token; then `Session.accepted` and a `connected` reply, or an error reply, or a close."""

    id: int
    token: str
    since: dict[str, Position]


class Subscribe(NamedTuple):
    """A subscription that the client asks for itself; with `strict` only if it recovers."""

    id: int
    channel: str
    since: Position | None
    strict: bool = False


class Unsubscribe(NamedTuple):
    id: int
    channel: str


class Publish(NamedTuple):
    id: int
    channel: str
    data: bytes


class History(NamedTuple):
    """A part of a channel's publications: up to `limit` of them, all if it is -1, only the position if it is 0."""

    id: int
    channel: str
    limit: int
    since: Position | None
    reverse: bool


class Presence(NamedTuple):
    """Who listens to a channel; only how many, if `counted`."""

    id: int
    channel: str
    counted: bool


class Rpc(NamedTuple):
    id: int
    method: str
    data: bytes


class Send(NamedTuple):
    """Like an rpc, without a reply."""

    data: bytes


class Refresh(NamedTuple):
    """A new token for the connection that is open."""

    id: int
    token: str


class Pong(NamedTuple):
    """The answer to our ping."""


class Reply(NamedTuple):
    """The session's own answer, ready to be sent."""

    data: bytes


class Close(NamedTuple):
    """Close the connection; nothing follows."""

    disconnect: Disconnect


#: What is asked of an accepted connection, and answered.
Request = Subscribe | Unsubscribe | Publish | History | Presence | Rpc | Refresh
Effect = Connect | Request | Send | Pong | Reply | Close


class _Recover(msgspec.Struct):
    recover: bool = False
    epoch: Annotated[str, msgspec.Meta(max_length=64)] = ""
    offset: _Offset = 0

    def since(self) -> Position | None:
        return Position(self.epoch, self.offset) if self.recover else None


class _Connect(msgspec.Struct):
    token: str = ""
    subs: dict[_Channel, _Recover] = {}


class _Subscribe(_Recover, kw_only=True):
    channel: _Channel
    flag: int = 0


class _Of(msgspec.Struct):
    channel: _Channel


class _Publish(_Of):
    data: msgspec.Raw = msgspec.Raw(b"null")
    # Another type than 0 is for kinds of channels that are not offered here.
    type: int = 0


class _Since(msgspec.Struct):
    epoch: Annotated[str, msgspec.Meta(max_length=64)] = ""
    offset: _Offset = 0


class _History(_Of):
    limit: Annotated[int, msgspec.Meta(ge=-1, le=2**31)] = 0
    since: _Since | None = None
    reverse: bool = False


class _Rpc(msgspec.Struct):
    method: Annotated[str, msgspec.Meta(max_length=64)] = ""
    data: msgspec.Raw = msgspec.Raw(b"null")


class _Send(msgspec.Struct):
    data: msgspec.Raw = msgspec.Raw(b"null")


class _Refresh(msgspec.Struct):
    token: str = ""


class _Empty(msgspec.Struct):
    pass


class _Command(msgspec.Struct):
    """One line of a frame. Exactly one of the fields beside `id` says what is asked; none at all is a pong."""

    id: _CommandId = 0
    connect: _Connect | None = None
    subscribe: _Subscribe | None = None
    unsubscribe: _Of | None = None
    publish: _Publish | None = None
    history: _History | None = None
    presence: _Of | None = None
    presence_stats: _Of | None = None
    rpc: _Rpc | None = None
    send: _Send | None = None
    refresh: _Refresh | None = None
    ping: _Empty | None = None
    # Known to Centrifuge, not offered here: no subscription expires by itself.
    sub_refresh: _Empty | None = None


_DECODER = msgspec.json.Decoder(_Command)


class Session:
    """What one client may say next."""

    __slots__ = ("_accepted",)

    def __init__(self) -> None:
        self._accepted = False

    def accepted(self) -> None:
        """The client's `connect` was accepted."""
        self._accepted = True

    def receive(self, text: str) -> Iterator[Effect]:
        """The effects of one text frame; see the module for how to iterate."""
        lines = [line for line in text.split("\n", MAX_COMMANDS) if line.strip()]
        if not 0 < len(lines) <= MAX_COMMANDS:
            yield Close(BAD_REQUEST)
            return
        for line in lines:
            effect = self._effect(line)
            yield effect
            if isinstance(effect, Close):
                return

    def _effect(self, line: str) -> Effect:
        try:
            command = _DECODER.decode(line)
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            return Close(BAD_REQUEST)
        # The first command must be a connect, and no other may be.
        if self._accepted == (command.connect is not None):
            return Close(BAD_REQUEST)
        if command.send is not None:
            return Send(bytes(command.send.data))
        if command.id == 0:
            return Pong() if line.strip() == "{}" else Close(BAD_REQUEST)
        return _request(command)


def _request(command: _Command) -> Effect:
    number = command.id
    if command.connect is not None:
        subs = command.connect.subs
        places = {channel: position for channel, sub in subs.items() if (position := sub.since()) is not None}
        return Connect(number, command.connect.token, places)
    if command.rpc is not None:
        return Rpc(number, command.rpc.method, bytes(command.rpc.data))
    if command.subscribe is not None:
        wanted = command.subscribe
        return Subscribe(number, wanted.channel, wanted.since(), bool(wanted.flag & _REJECT_UNRECOVERED))
    if command.unsubscribe is not None:
        return Unsubscribe(number, command.unsubscribe.channel)
    if command.refresh is not None:
        return Refresh(number, command.refresh.token)
    if command.publish is not None and command.publish.type == 0:
        return Publish(number, command.publish.channel, bytes(command.publish.data))
    if command.history is not None:
        asked = command.history
        since = None if asked.since is None else Position(asked.since.epoch, asked.since.offset)
        return History(number, asked.channel, asked.limit, since, asked.reverse)
    if command.presence is not None:
        return Presence(number, command.presence.channel, counted=False)
    if command.presence_stats is not None:
        return Presence(number, command.presence_stats.channel, counted=True)
    if command.ping is not None:
        return Reply(_reply(number, b"ping", b"{}"))
    not_offered = command.publish is not None or command.sub_refresh is not None
    return Reply(error(number, NOT_AVAILABLE if not_offered else METHOD_NOT_FOUND))


class _Tags(msgspec.Struct):
    key: str


class _Pub(msgspec.Struct):
    data: msgspec.Raw
    offset: int
    tags: _Tags | msgspec.UnsetType = msgspec.UNSET


class _Positions(msgspec.Struct):
    publications: list[_Pub]
    epoch: str
    offset: int


class _Listener(msgspec.Struct):
    client: str
    user: str


class _Subscribed(msgspec.Struct, omit_defaults=True):
    epoch: str
    offset: int
    recoverable: bool = False
    positioned: bool = False
    was_recovering: bool = False
    recovered: bool = False
    publications: list[_Pub] = []


class _Connected(msgspec.Struct):
    client: str
    version: str
    expires: bool
    ttl: int
    ping: int
    pong: bool
    subs: dict[str, _Subscribed]


class _Error(msgspec.Struct, omit_defaults=True):
    code: int
    message: str
    temporary: bool = False


_ENCODER = msgspec.json.Encoder()


def connected(
    number: int, *, client: str, version: str, ttl_s: int, ping_s: int, subs: Mapping[str, tuple[bool, Recovered]]
) -> bytes:
    """The answer to `connect`. `subs` maps channel to whether the client asked to recover, and what was found."""
    subscribed = {channel: _subscribed(asked, found) for channel, (asked, found) in subs.items()}
    body = _Connected(client, version, expires=True, ttl=ttl_s, ping=ping_s, pong=True, subs=subscribed)
    return _reply(number, b"connect", _ENCODER.encode(body))


def subscribed(number: int, asked: bool, found: Recovered) -> bytes:
    return _reply(number, b"subscribe", _ENCODER.encode(_subscribed(asked, found)))


def unsubscribed(number: int) -> bytes:
    return _reply(number, b"unsubscribe", b"{}")


def refreshed(number: int, client: str, version: str, ttl_s: int) -> bytes:
    body = {"client": client, "version": version, "expires": True, "ttl": ttl_s}
    return _reply(number, b"refresh", _ENCODER.encode(body))


def published(number: int) -> bytes:
    return _reply(number, b"publish", b"{}")


def history(number: int, publications: list[Publication], top: Position) -> bytes:
    body = _Positions([_pub(publication) for publication in publications], top.epoch, top.offset)
    return _reply(number, b"history", _ENCODER.encode(body))


def presence(number: int, listeners: Mapping[str, str]) -> bytes:
    """The answer to `presence`. `listeners` maps client to user."""
    body = {client: _Listener(client, user) for client, user in listeners.items()}
    return _reply(number, b"presence", _ENCODER.encode({"presence": body}))


def presence_stats(number: int, listeners: Mapping[str, str]) -> bytes:
    body = {"num_clients": len(listeners), "num_users": len(set(listeners.values()))}
    return _reply(number, b"presence_stats", _ENCODER.encode(body))


def rpc_result(number: int, data: bytes) -> bytes:
    """The answer to an rpc; `data` is JSON, or empty for none."""
    return _reply(number, b"rpc", b'{"data":%b}' % single_line(data) if data else b"{}")


def error(number: int, code: ErrorCode) -> bytes:
    return _reply(number, b"error", _ENCODER.encode(_Error(*code)))


def push(channel: str, publication: Publication) -> bytes:
    """A publication as every subscriber gets it."""
    return _push_of(channel, b"pub", _ENCODER.encode(_pub(publication)))


def joined(channel: str, found: Recovered) -> bytes:
    """News for the client: the server has subscribed it to a channel."""
    return _push_of(channel, b"subscribe", _ENCODER.encode(_subscribed(False, found)))


def left(channel: str, why: Disconnect) -> bytes:
    """News for the client: the server has ended its subscription."""
    return _push_of(channel, b"unsubscribe", _ENCODER.encode(why._asdict()))


def disconnected(why: Disconnect) -> bytes:
    """The last message where no close frame can say why the connection ends."""
    return b'{"push":{"disconnect":%b}}' % _ENCODER.encode(why._asdict())


def single_line(data: bytes) -> bytes:
    """The same JSON without line feeds, which separate the messages of a frame."""
    return msgspec.json.format(data, indent=-1) if b"\n" in data else data


def _reply(number: int, kind: bytes, body: bytes) -> bytes:
    return b'{"id":%d,"%b":%b}' % (number, kind, body)


def _push_of(channel: str, kind: bytes, body: bytes) -> bytes:
    return b'{"push":{"channel":%b,"%b":%b}}' % (_ENCODER.encode(channel), kind, body)


def _pub(publication: Publication) -> _Pub:
    tags = _Tags(publication.key) if publication.key else msgspec.UNSET
    return _Pub(msgspec.Raw(publication.data), publication.offset, tags)


def _subscribed(asked: bool, found: Recovered) -> _Subscribed:
    return _Subscribed(
        epoch=found.position.epoch,
        offset=found.position.offset,
        recoverable=True,
        positioned=True,
        was_recovering=asked,
        recovered=asked and found.recovered,
        publications=[_pub(publication) for publication in found.publications],
    )
