"""How a client's bytes get out: what `Client` asks of a connection, and the WebSocket that gives it.

Messages are single lines of JSON. What goes to many clients is an `Envelope`, which every kind of transport frames only
once, whoever asks first.
"""

from typing import Protocol

from websockets.asyncio.server import ServerConnection
from websockets.frames import Frame, Opcode
from websockets.protocol import State

from channels.gateway.codes import Disconnect
from nearcast.metrics import DISCONNECTS


class Envelope:
    """One message for many clients."""

    __slots__ = ("_websocket", "json")

    def __init__(self, json: bytes) -> None:
        self.json = json
        self._websocket: bytes | None = None

    @property
    def websocket(self) -> bytes:
        """A whole WebSocket text frame as a server sends it; the same bytes serve every connection."""
        if self._websocket is None:
            self._websocket = frame(self.json)
        return self._websocket


class Transport(Protocol):
    """One client's connection. Nothing here waits or raises."""

    @property
    def is_open(self) -> bool:
        """Whether what is sent can still arrive."""
        ...

    @property
    def backlog(self) -> int:
        """Bytes that the client has not taken yet."""
        ...

    def send(self, json: bytes) -> None:
        """Send a message to this client alone."""
        ...

    def send_envelope(self, envelope: Envelope) -> None:
        """Send a message that others get, too."""
        ...

    def close(self, disconnect: Disconnect) -> None:
        """Tell the client why, and begin to close."""
        ...

    def abort(self) -> None:
        """Cut the client off."""
        ...


def frame(json: bytes) -> bytes:
    return Frame(Opcode.TEXT, json).serialize(mask=False)


class WebSocketTransport:
    """Writes whole frames past `websockets`' own send, which would wait for a client that doesn't read."""

    __slots__ = ("_connection",)

    def __init__(self, connection: ServerConnection) -> None:
        self._connection = connection

    @property
    def is_open(self) -> bool:
        return self._connection.state is State.OPEN and not self._connection.transport.is_closing()

    @property
    def backlog(self) -> int:
        return self._connection.transport.get_write_buffer_size()

    def send(self, json: bytes) -> None:
        self._connection.transport.write(frame(json))

    def send_envelope(self, envelope: Envelope) -> None:
        self._connection.transport.write(envelope.websocket)

    def close(self, disconnect: Disconnect) -> None:
        if self._connection.state is State.OPEN:
            self._connection.protocol.send_close(disconnect.code, disconnect.reason)
            self._connection.send_data()

    def abort(self) -> None:
        self._connection.transport.abort()

    def count_close(self) -> None:
        """Count what `websockets` closed by itself: a frame that is too large, text that is not UTF-8."""
        rules = self._connection.protocol
        if rules.close_sent is not None and not rules.close_rcvd_then_sent:
            DISCONNECTS.labels(str(rules.close_sent.code)).inc()
