"""Clients that do what a gateway must not suffer from: bare sockets with a small window, read as slowly as told."""

import asyncio
import base64
import json
import os
import socket
import struct
from typing import Any

#: The kernel's least is a little more than this.
_WINDOW_BYTES = 4096


class Sluggard:
    """A connected and subscribed client that sends nothing more, and reads only what it is told to."""

    def __init__(self) -> None:
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _WINDOW_BYTES)
        self._socket.setblocking(False)
        self._read = bytearray()

    async def connect(self, port: int, token: str) -> None:
        loop = asyncio.get_running_loop()
        await loop.sock_connect(self._socket, ("127.0.0.1", port))
        key = base64.b64encode(os.urandom(16)).decode()
        await loop.sock_sendall(
            self._socket,
            f"GET /connection/websocket HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode(),
        )
        while b"\r\n\r\n" not in self._read:
            assert await self.read(4096), self._read
        assert self._read.startswith(b"HTTP/1.1 101 "), self._read
        del self._read[: self._read.index(b"\r\n\r\n") + 4]
        command = json.dumps({"id": 1, "connect": {"token": token}}).encode()
        mask = os.urandom(4)
        masked = bytes(byte ^ mask[place % 4] for place, byte in enumerate(command))
        assert 126 <= len(command) < 65_536
        await loop.sock_sendall(self._socket, struct.pack("!BBH", 0x81, 0x80 | 126, len(command)) + mask + masked)
        _, answer = await self.frame()
        assert "connect" in json.loads(answer), answer

    async def read(self, size: int) -> int:
        """Read up to so many bytes; 0 at the end, however that came."""
        try:
            data = await asyncio.get_running_loop().sock_recv(self._socket, size)
        except ConnectionError:
            return 0
        self._read += data
        return len(data)

    async def read_a_byte_a_second(self) -> None:
        """Until the end."""
        while await self.read(1):
            await asyncio.sleep(1.0)

    async def frame(self) -> tuple[int, bytes]:
        """The next frame's opcode and content. Raises EOFError at the end."""
        head = await self._take(2)
        size = head[1] & 0x7F
        if size == 126:
            (size,) = struct.unpack("!H", await self._take(2))
        elif size == 127:
            (size,) = struct.unpack("!Q", await self._take(8))
        return head[0] & 0x0F, await self._take(size)

    async def close_code(self) -> int:
        """Read on until the server's close frame; its code."""
        while True:
            opcode, content = await self.frame()
            if opcode == 0x8:
                return int.from_bytes(content[:2], "big")

    async def _take(self, size: int) -> bytes:
        while len(self._read) < size:
            if not await self.read(65_536):
                raise EOFError
        taken = bytes(self._read[:size])
        del self._read[:size]
        return taken

    def close(self) -> None:
        self._socket.close()


class Healthy:
    """A client that reads what comes, and answers pings."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self.offsets: list[int] = []

    async def connect(self, token: str) -> None:
        await self._connection.send(json.dumps({"id": 1, "connect": {"token": token}}))
        answer = json.loads(await self._connection.recv())
        assert "connect" in answer, answer

    async def read(self) -> None:
        """Until it is closed."""
        async for text in self._connection:
            if text == "{}":
                await self._connection.send("{}")
            else:
                self.offsets.append(json.loads(text)["push"]["pub"]["offset"])
