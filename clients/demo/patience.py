"""Trying again: every call of the demo is idempotent, so what failed on the way is simply repeated."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from nearcast.errors import Unavailable

T = TypeVar("T")
_SHORTEST_S, _LONGEST_S = 0.05, 1.0


async def insist(call: Callable[[], Awaitable[T]], limit_s: float = 60.0) -> T:
    """The result of `call`, repeated while nearcast is away. After `limit_s` seconds its `Unavailable` gets through."""
    loop = asyncio.get_running_loop()
    until = loop.time() + limit_s
    wait_s = _SHORTEST_S
    while True:
        try:
            return await call()
        except Unavailable:
            if loop.time() + wait_s > until:
                raise
        await asyncio.sleep(wait_s)
        wait_s = min(wait_s * 2, _LONGEST_S)
