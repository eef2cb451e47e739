"""Trying again: every call of the demo is idempotent, so what failed on the way is simply repeated."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import ParamSpec, TypeVar

from nearcast.errors import Unavailable

P = ParamSpec("P")
T = TypeVar("T")
_SHORTEST_S, _LONGEST_S = 0.05, 1.0
#: Longer than any restart takes.
_LIMIT_S = 60.0


async def insist(call: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
    """The result of the call, repeated while nearcast is away. In the end its `Unavailable` gets through."""
    loop = asyncio.get_running_loop()
    until = loop.time() + _LIMIT_S
    wait_s = _SHORTEST_S
    while True:
        try:
            return await call(*args, **kwargs)
        except Unavailable:
            if loop.time() + wait_s > until:
                raise
        await asyncio.sleep(wait_s)
        wait_s = min(wait_s * 2, _LONGEST_S)
