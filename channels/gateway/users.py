"""Who is connected to this node, by user, so that a user's connections can be limited and ended."""

from typing import NamedTuple, Protocol

import msgspec

from channels.gateway.backend import Role
from channels.gateway.codes import CONNECTION_LIMIT, Disconnect


class Connection(Protocol):
    """One client of a user."""

    def close(self, disconnect: Disconnect) -> None:
        """End it. Must not wait and must not raise."""
        ...


class User(NamedTuple):
    """A customer and a member of staff may have the same name."""

    role: Role
    sub: str


class _Ended(msgspec.Struct):
    user: str
    code: int
    reason: str


class _Control(msgspec.Struct):
    """What `ChannelStreams.disconnect` sends to every node."""

    disconnect: _Ended


class Users:
    """Holds up to `limit` connections of one user, 0 for any number. The oldest has to go for a newer one: refusing the
    newest would lock out a phone whose dead connection has not been noticed yet.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        # Oldest first. Nearly all have one connection, for which a tuple is the smallest.
        self._connections: dict[User, tuple[Connection, ...]] = {}

    def add(self, user: User, connection: Connection) -> None:
        """From now on what ends the user's connections ends this one."""
        self._connections[user] = (*self._connections.get(user, ()), connection)

    def make_room(self, user: User) -> None:
        """End the user's oldest connections if there are too many."""
        connections = self._connections.get(user, ())
        if 0 < self._limit < len(connections):
            for oldest in connections[: -self._limit]:
                oldest.close(CONNECTION_LIMIT)
            self._connections[user] = connections[-self._limit :]

    def remove(self, user: User, connection: Connection) -> None:
        rest = tuple(other for other in self._connections.get(user, ()) if other is not connection)
        if rest:
            self._connections[user] = rest
        else:
            self._connections.pop(user, None)

    def hand_over(self, frame: bytes) -> bool:
        """A control frame: end all connections of a customer to this node. False if it is about something else."""
        try:
            ended = msgspec.json.decode(frame, type=_Control).disconnect
        except (msgspec.MsgspecError, UnicodeError):
            return False
        for connection in self._connections.get(User("customer", ended.user), ()):
            connection.close(Disconnect(ended.code, ended.reason))
        return True
