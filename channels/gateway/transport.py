"""How a client's bytes get out: what `Client` asks of a connection, and what is sent to many.

Messages are single lines of JSON. What goes to many clients is an `Envelope`, which every kind of transport frames only
once, whoever asks first.
"""

import asyncio
import socket
import struct
from contextlib import suppress
from typing import Protocol

from websockets.frames import Frame, Opcode

from channels.gateway.codes import Disconnect

_NOTHING_LINGERS = struct.pack("ii", 1, 0)


class Envelope:
    """One message for many clients. For a client with a backlog, one with the same `key` replaces it.

    `note` is a publication's, until a client has been given it.
    """

    __slots__ = ("_event", "_websocket", "json", "key", "note")

    def __init__(self, json: bytes, key: str = "", note: str = "") -> None:
        self.json = json
        self.key = key
        self.note = note
        self._websocket: bytes | None = None
        self._event: bytes | None = None

    @property
    def websocket(self) -> bytes:
        """A whole WebSocket text frame as a server sends it; the same bytes serve every connection."""
        if self._websocket is None:
            self._websocket = frame(self.json)
        return self._websocket

    @property
    def event(self) -> bytes:
        """An event of an event stream, but for its id."""
        if self._event is None:
            self._event = b"data: %b\n\n" % self.json
        return self._event


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

    def joined(self) -> None:
        """The client's `connect` has been carried out, whatever came of it: another newcomer may come in."""
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


def cut_off(connection: asyncio.Transport) -> None:
    """Close at once and throw away what was not sent: else the kernel would go on sending to who takes next to none."""
    if (socket_of := connection.get_extra_info("socket")) is not None:
        with suppress(OSError):
            socket_of.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NOTHING_LINGERS)
    connection.abort()


def frame(json: bytes) -> bytes:
    return Frame(Opcode.TEXT, json).serialize(mask=False)
