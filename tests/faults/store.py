"""The store's server, made to lose what a power cut or a restore would make it lose.

A SIGKILL alone loses nothing, whatever `appendfsync` says: what was written is with the kernel. What
`appendfsync everysec` may lose when the machine goes, its last second, is cut off the append-only file here, before the
server starts again. The file is a sequence of commands, so its beginning is a state that the store was in; a command
(or transaction: a script's effects are one) that the cut leaves incomplete is dropped at the start
(`aof-load-truncated yes`, the default).
"""

import asyncio
import contextlib
import shutil
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from redis.asyncio import Redis

from tests.faults.history import History
from tests.services.valkey import ValkeyProcess


class Losses:
    """Knows how long the append-only file was at each moment. Use `watching` it."""

    def __init__(self, valkey: ValkeyProcess, history: History) -> None:
        self._valkey = valkey
        self._history = history
        self._sizes: deque[tuple[float, int]] = deque(maxlen=2_000)

    @asynccontextmanager
    async def watching(self) -> AsyncIterator["Losses"]:
        task = asyncio.create_task(self._watch(), name="append-only file")
        try:
            yield self
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def kill_and_lose(self, seconds: float) -> int:
        """SIGKILL; what was appended in the last so many seconds is gone. Starts again; the number of bytes lost."""
        await asyncio.to_thread(self._valkey.kill)
        file = _append_only_file(self._valkey)
        before = time.monotonic() - seconds
        kept = max((size for at_s, size in self._sizes if at_s <= before), default=0)
        lost = file.stat().st_size - kept
        with file.open("r+b") as opened:
            opened.truncate(kept)
        self._sizes.clear()
        await asyncio.to_thread(self._valkey.start)
        self._history.note("killed", what_else="the store", lost_bytes=lost)
        return lost

    async def _watch(self) -> None:
        while True:
            self._sizes.append((time.monotonic(), _append_only_file(self._valkey).stat().st_size))
            await asyncio.sleep(0.02)


async def sync_always(redis: Redis) -> None:
    """`appendfsync always` from here on, until the server ends."""
    await redis.config_set("appendfsync", "always")


def backup(valkey: ValkeyProcess, to: Path) -> None:
    """Copy the data while the server runs. Nothing rewrites it in a recipe, so a copy of the files is a state."""
    shutil.copytree(valkey.folder / "appendonlydir", to)


async def restore(valkey: ValkeyProcess, copy: Path, history: History) -> None:
    """SIGKILL, put the copy in place, start again."""
    await asyncio.to_thread(valkey.kill)
    shutil.rmtree(valkey.folder / "appendonlydir")
    shutil.copytree(copy, valkey.folder / "appendonlydir")
    await asyncio.to_thread(valkey.start)
    history.note("restored", what_else="the store")


def _append_only_file(valkey: ValkeyProcess) -> Path:
    (file,) = (valkey.folder / "appendonlydir").glob("*.incr.aof")
    return file
