"""Channels in the state store: a bounded, expiring stream of publications each, and who is listening.

A channel's offsets count up by one; publish is one script, so offsets, history and the notice to the listening nodes
can't come apart. What was lost is always said: a position that history can't continue from reads as not recovered.
What was withdrawn is not lost: its offset is skipped.
Each node that has a subscriber keeps a sign of life in the channel's set of nodes; one that falls silent is dropped.

Any process may publish and read with one of these. Publications reach this node's sockets through `hub.Hub`.
"""

import asyncio
import secrets
from collections import deque
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple, cast

import msgspec
from redis.asyncio import Redis
from redis.commands.core import AsyncScript
from redis.exceptions import NoScriptError, RedisError

from channels.gateway.protocol import single_line
from channels.gateway.publications import Position, Publication, Recovered, Unrecoverable
from channels.trace import Shown
from nearcast import keys
from nearcast.clock import Clock
from nearcast.errors import InputError, Recalled, Unavailable
from nearcast.messages import WithdrawReason

DAY_S = 86_400
#: A node without a sign of life for this long no longer counts as listening.
NODE_DEAD_AFTER_MS = 90_000
#: How many commands may be under way at once, so that a wave of reconnects can't use up the client's connections.
MAX_CONCURRENT = 32
#: How long a logout is remembered. Tokens that live longer than this would be good again afterwards.
REVOKED_FOR_S = 30 * DAY_S
#: The reason for a withdrawal after which the same is not published again.
RECALLED: WithdrawReason = "recalled"
#: Stands for a position where there is none.
NOWHERE = Position("", 0)

#: How many publications go into one round trip.
BATCH = 64

_Part = str | bytes | int


class Listening(NamedTuple):
    """That this node listens to a channel, and has delivered everything up to `known`; what followed `since` is asked.

    `clients` are the client and user ids to be seen in the channel's presence.
    """

    channel: str
    known: Position | None = None
    since: Position | None = None
    clients: Sequence[tuple[str, str]] = ()


class ChannelStreams:
    """Publish to channels, read them, and say which this node listens to.

    `node` names this process to others like it, `alias` to clients: it says nothing of the host. `shown` is what this
    node has written to its clients.
    """

    def __init__(
        self, redis: Redis, node: str, clock: Clock, *, history_size: int = 256, history_ttl_s: int = DAY_S
    ) -> None:
        self.redis = redis
        self.node = node
        self.alias = secrets.token_hex(8)
        self.history_size = history_size
        self.shown = Shown(clock)
        self._clock = clock
        self._history_ttl_s = history_ttl_s
        self._publish, self._withdraw, self._history, self._join, self._presence = (
            redis.register_script(_script("channel.lua") + _script(name))
            for name in ("publish.lua", "withdraw.lua", "history.lua", "join.lua", "presence.lua")
        )
        self._slots = asyncio.Semaphore(MAX_CONCURRENT)
        self._unsent: deque[tuple[AsyncScript, list[_Part], asyncio.Future[object]]] = deque()
        self._sending: asyncio.Task[None] | None = None

    async def publish(self, channel: str, data: bytes, key: str = "") -> Position:
        """Append JSON `data` and tell the nodes that listen; `key` is a `Publication`'s.

        Where a command is retried or raises `Unavailable`, it may have happened any number of times: what must arrive
        exactly once goes through `publish_once`.
        """
        if key and not key.isprintable():
            raise InputError("bad_key", "a key is printable text", "key")
        return cast("Position", await self._append(channel, data, key, []))

    async def publish_once(self, channel: str, once: str, data: bytes, note: str = "") -> Position:
        """Like `publish`, once per `once`: repeated within the history's time it tells the nodes again, appends
        nothing, and returns the first position. `note` is a `Publication`'s.

        Raises `Recalled` if it has been withdrawn as that.
        """
        return cast("Position", await self._append(channel, data, "", _once_keys(channel, once), note))

    async def publish_if_heard(self, channel: str, once: str, data: bytes, note: str = "") -> bool:
        """`publish_once`, but only if the channel is `connected`; whether it was, or was published already."""
        return await self._append(channel, data, "", _once_keys(channel, once), note, heard=True) is not None

    async def withdraw(self, channel: str, once: str, data: bytes, reason: str = "") -> bool:
        """Take back what `publish_once` published under `once`, and publish `data` to those who have it already.

        Repeated for the same reason it appends nothing, but tells the nodes again. For another one it publishes `data`
        besides: some may be left who have the message still. False if nothing was published within the history's time:
        nothing happens then.
        """
        return await self._take_back(channel, once, data, reason, before_too=False)

    async def recall(self, channel: str, once: str, data: bytes) -> None:
        """`withdraw` as recalled; what was not published under `once` yet will not be: `publish_once` refuses it."""
        await self._take_back(channel, once, data, RECALLED, before_too=True)

    async def published(self, channel: str, once: str) -> bool:
        """True if `publish_once` did publish under this key, within the history's time."""
        async with self._store():
            return bool(await self.redis.exists(keys.channel_once(channel, once)))

    async def read(self, channel: str, since: Position | None) -> Recovered:
        """What followed `since`; without it only where the channel stands."""
        found = await self._look(channel, -1 if since else 0, since, reverse=False)
        return found if since else found._replace(recovered=False)

    async def history(
        self, channel: str, limit: int, since: Position | None, reverse: bool
    ) -> tuple[list[Publication], Position]:
        """Up to `limit` publications (-1 for all that are kept) after `since`, or from the oldest; `reverse`: before
        it, or from the newest, newest first. Where the channel stands, too.

        Raises `Unrecoverable` if what followed `since` is not kept any more.
        """
        found = await self._look(channel, limit, since, reverse)
        if not found.recovered:
            raise Unrecoverable("what followed the position is not kept")
        return found.publications, found.position

    async def connected(self, channel: str) -> bool:
        """True if some node has a subscriber.

        It lags: for a node that died until the next publication or 90 s, for a phone that vanished by the pong timeout.
        """
        async with self._store():
            living = await self.redis.zcount(keys.channel_nodes(channel), self._dead_before_ms(), "+inf")
        return int(living) > 0

    async def presence(self, channel: str) -> dict[str, str]:
        """Client id → user of who is subscribed, where that is kept (`keeps_presence`). Lags as `connected` does."""
        async with self._store():
            rows = await self._presence(keys=[keys.channel_presence(channel)], args=[self._dead_before_ms()])
        return {rows[place].decode(): rows[place + 1].decode() for place in range(0, len(rows), 2)}

    async def revoke(self, user: str, now_ms: int) -> None:
        """Refuse the user's tokens that were issued up to now; who is connected stays (see `disconnect`)."""
        async with self._store():
            await self.redis.set(keys.revoked(user), now_ms, ex=REVOKED_FOR_S)

    async def disconnect(self, user: str, code: int, reason: str) -> None:
        """Ask all nodes to close the user's connections: they get `{"disconnect": {"user", "code", "reason"}}`."""
        payload = msgspec.json.encode({"disconnect": {"user": user, "code": code, "reason": reason}})
        async with self._store():
            await self.redis.publish(keys.nodes_bus(), _control_frame(payload))

    async def tell(self, node: str, payload: bytes) -> bool:
        """Send a control message to one node, by its name or alias. False if nobody of that name listens."""
        async with self._store():
            return bool(await self.redis.publish(keys.node_bus(node), _control_frame(payload)))

    async def attend(
        self, channels: Sequence[Listening], users: Collection[str] = ()
    ) -> tuple[list[Recovered], dict[str, int]]:
        """Say that this node listens to channels; what followed the positions, and when users were last logged out
        (ms), of those who were. One round trip.
        """
        names = list(users)
        commands: list[list[_Part]] = [["GET", keys.revoked(user)] for user in names]
        commands += [self._joining(listening) for listening in channels]
        replies = await self._pipelined(commands, self._join)
        revoked = {user: int(ms) for user, ms in zip(names, replies, strict=False) if ms is not None}
        return [_recovered(reply) for reply in replies[len(names) :]], revoked

    async def dismiss(self, channels: Sequence[str], left: Sequence[tuple[str, Sequence[str]]] = ()) -> None:
        """Say that this node no longer listens to channels, and which clients have left which channels."""
        commands: list[list[_Part]] = [["ZREM", keys.channel_nodes(channel), self.node] for channel in channels]
        commands += [["HDEL", keys.channel_presence(channel), *clients] for channel, clients in left]
        await self._pipelined(commands)

    def _joining(self, listening: Listening) -> list[_Part]:
        channel = listening.channel
        names = [*_history_keys(channel), keys.channel_nodes(channel), keys.channel_presence(channel)]
        command: list[_Part] = ["EVALSHA", self._join.sha, len(names), *names]
        command += [self.node, self._clock.now_ms(), self._dead_before_ms()]
        command += [_new_epoch(), self._history_ttl_s, 2 * NODE_DEAD_AFTER_MS // 1000]
        command += (listening.known or NOWHERE) + (listening.since or NOWHERE)
        for client in listening.clients:
            command += client
        return command

    async def _append(
        self, channel: str, data: bytes, key: str, once: list[str], note: str = "", *, heard: bool = False
    ) -> Position | None:
        names = [*_history_keys(channel), keys.channel_nodes(channel), *once]
        args: list[_Part] = [channel, single_line(data), key, *self._kept(), int(heard), note]
        found = cast("list[bytes] | None", await self._in_turn(self._publish, names, args))
        if found == []:
            raise Recalled(RECALLED)
        return None if found is None else _position(*found)

    async def _in_turn(self, script: AsyncScript, names: Sequence[str], args: Sequence[_Part]) -> object:
        """The script's reply; sent together with others, and in the order of the calls."""
        command: list[_Part] = ["EVALSHA", script.sha, len(names), *names, *args]
        sent: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        self._unsent.append((script, command, sent))
        if self._sending is None or self._sending.done():
            self._sending = asyncio.create_task(self._send(), name="gateway-publish")
        return await sent

    async def _send(self) -> None:
        """Send what is unsent, one round trip after the other: what is published meanwhile goes with the next one."""
        while self._unsent:
            popped = [self._unsent.popleft() for _ in range(min(BATCH, len(self._unsent)))]
            # Nobody may find that what they gave up was published later.
            batch = [each for each in popped if not each[2].cancelled()]
            try:
                async with self._store():
                    replies = await self._each([(script, command) for script, command, _ in batch])
            except Exception as error:  # noqa: BLE001 whatever it is, it is the callers' to hear of
                replies = [error] * len(batch)
            for (_, _, sent), reply in zip(batch, replies, strict=True):
                if sent.cancelled():
                    continue
                if isinstance(reply, Exception):
                    sent.set_exception(_unavailable(reply))
                else:
                    sent.set_result(reply)
        self._sending = None

    async def _each(self, calls: Sequence[tuple[AsyncScript, Sequence[_Part]]]) -> list[object]:
        """The replies, or errors, of commands that were sent together; those that found no script are sent again, and
        no others, as they may have changed something.
        """
        replies = await self._run([command for _, command in calls], raise_on_error=False)
        missed = [place for place, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
        if missed:
            for script in {calls[place][0] for place in missed}:
                await self.redis.script_load(script.script)
            again = await self._run([calls[place][1] for place in missed], raise_on_error=False)
            for place, reply in zip(missed, again, strict=True):
                replies[place] = reply
        return replies

    def _kept(self) -> list[_Part]:
        """The last arguments of every script that publishes."""
        return [
            self.history_size,
            self._history_ttl_s,
            self._dead_before_ms(),
            _new_epoch(),
            keys.node_bus(""),
        ]

    async def _take_back(self, channel: str, once: str, data: bytes, reason: str, *, before_too: bool) -> bool:
        names = [*_history_keys(channel), keys.channel_nodes(channel)]
        names += [keys.channel_once(channel, once), keys.channel_withdrawn(channel, once, reason)]
        args: list[_Part] = [channel, single_line(data), *self._kept(), int(before_too)]
        return bool(await self._in_turn(self._withdraw, names, args))

    async def _look(self, channel: str, limit: int, since: Position | None, reverse: bool) -> Recovered:
        args: list[_Part] = [_new_epoch(), self._history_ttl_s, limit, int(reverse), int(since is not None)]
        args += since or NOWHERE
        async with self._store():
            return _recovered(await self._history(keys=_history_keys(channel), args=args))

    async def _pipelined(
        self, commands: Sequence[Sequence[_Part]], script: AsyncScript | None = None
    ) -> list[bytes | None]:
        """Run commands in one round trip. If the store doesn't know the script, it is loaded and all are repeated."""
        async with self._store():
            try:
                return cast("list[bytes | None]", await self._run(commands))
            except NoScriptError:
                if script is None:
                    raise
                await self.redis.script_load(script.script)
                return cast("list[bytes | None]", await self._run(commands))

    async def _run(self, commands: Sequence[Sequence[_Part]], *, raise_on_error: bool = True) -> list[object]:
        async with self.redis.pipeline(transaction=False) as pipe:
            for command in commands:
                pipe.execute_command(*command)
            return cast("list[object]", await pipe.execute(raise_on_error=raise_on_error))

    def _dead_before_ms(self) -> int:
        return self._clock.now_ms() - NODE_DEAD_AFTER_MS

    @asynccontextmanager
    async def _store(self) -> AsyncIterator[None]:
        async with self._slots:
            try:
                yield
            except (RedisError, OSError) as error:
                raise _unavailable(error) from error


def _unavailable(error: Exception) -> Unavailable:
    if isinstance(error, Unavailable):
        return error
    return Unavailable(f"the state store can't be reached: {type(error).__name__}")


def keeps_presence(channel: str) -> bool:
    """Who is in a store's or a zone's channel is written down nowhere: too many, and nobody's business."""
    return channel.startswith(("customer:", "staff:"))


def _script(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def _new_epoch() -> str:
    return secrets.token_hex(4)


def _once_keys(channel: str, once: str) -> list[str]:
    return [keys.channel_once(channel, once), keys.channel_withdrawn(channel, once, RECALLED)]


def _history_keys(channel: str) -> list[str]:
    return [keys.channel_stream(channel), keys.channel_meta(channel), keys.channel_gone(channel)]


def _control_frame(payload: bytes) -> bytes:
    """A frame of the bus that is no publication: without epoch and channel."""
    return b"\n0\n\n" + payload


def _position(epoch: bytes, offset: bytes) -> Position:
    return Position(epoch.decode(), int(offset))


def _recovered(reply: object) -> Recovered:
    epoch, top, recovered, flat = cast("tuple[bytes, bytes, int, list[bytes]]", reply)
    publications = [
        Publication(int(flat[place]), flat[place + 1], flat[place + 2].decode(), flat[place + 3].decode())
        for place in range(0, len(flat), 4)
    ]
    return Recovered(publications, bool(recovered), _position(epoch, top))
