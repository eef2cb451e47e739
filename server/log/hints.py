"""Work that nobody waits for: started when asked for, never more often than its interval, finished before the end."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable


class Hints:
    """Calls `flush` in the background after `soon`, at most once in `every_s`. `flush` must not raise."""

    def __init__(self, name: str, flush: Callable[[], Awaitable[None]], every_s: float) -> None:
        self._name = name
        self._flush = flush
        self._every_s = every_s
        self._wanted = False
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def soon(self) -> None:
        """There is something to flush."""
        self._wanted = True
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name=self._name)

    async def stop(self) -> None:
        """Flush what is left, at once, and end."""
        self._stopping.set()
        if self._task is not None:
            await self._task
        self._stopping.clear()

    async def _run(self) -> None:
        while self._wanted:
            self._wanted = False
            await self._flush()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._every_s):
                    await self._stopping.wait()
