"""A Tile38 server for the benchmark of fences, filled and asked by its own protocol (RESP) over the loopback."""

import contextlib
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from redis import Redis
from redis.exceptions import RedisError

from bench.processes import usage

_KEY = "fences"
_AT_ONCE = 1_000
_READY_WITHIN_S = 30.0


class Tile38:
    """A server of its own, in a folder that goes with it."""

    def __init__(self, program: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self._folder = tempfile.TemporaryDirectory(prefix="nearcast-tile38-")
        self._process = subprocess.Popen(
            [program, "-h", "127.0.0.1", "-p", str(port), "-d", self._folder.name],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._client = Redis(port=port, socket_timeout=60.0, lib_name=None, lib_version=None)

    def __enter__(self) -> Self:
        deadline = time.monotonic() + _READY_WITHIN_S
        while True:
            with contextlib.suppress(RedisError):
                self._client.ping()
                return self
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.__exit__(None, None, None)
                raise RuntimeError("tile38-server does not answer")
            time.sleep(0.05)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._client.close()
        self._process.terminate()
        self._process.wait()
        self._folder.cleanup()

    def fill(self, outlines: Iterable[tuple[str, str]]) -> None:
        """Store fences: id and GeoJSON geometry."""
        self._send([("SET", _KEY, fence_id, "OBJECT", geojson) for fence_id, geojson in outlines])

    def cost_us(self, fixes: Sequence[tuple[float, float]]) -> float:
        """The server's processor time for a fix (latitude, longitude), in microseconds."""
        # A box without extent: the least that its parser can be given.
        asked = [("INTERSECTS", _KEY, "LIMIT", _AT_ONCE, "IDS", "BOUNDS", lat, lng, lat, lng) for lat, lng in fixes]
        before = usage(self._process.pid).cpu_s
        self._send(asked)
        return (usage(self._process.pid).cpu_s - before) / len(fixes) * 1e6

    def _send(self, commands: Sequence[tuple[str | float, ...]]) -> None:
        for first in range(0, len(commands), _AT_ONCE):
            pipeline = self._client.pipeline(transaction=False)
            for command in commands[first : first + _AT_ONCE]:
                pipeline.execute_command(*command)  # type: ignore[no-untyped-call]  # so it is in redis-py
            pipeline.execute()
