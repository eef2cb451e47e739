"""When Python looks for garbage in a process that keeps the records or the connections of many customers."""

import asyncio
import gc

#: Objects that may be garbage, before the young ones are looked at; and how many looks at those of one generation come
#: before one at the next. Python's own 700, 10 and 10 mean a look every few fixes, and every few seconds one at all the
#: records in the cache or all connections, which holds up everything for 50 ms and more. Nearly nothing of ours is a
#: cycle: what is not used any more goes at once, without anybody looking.
_THRESHOLDS = (50_000, 20, 1_000)
#: Closed connections can be cycles.
_EVERY_S = 300.0


def look_for_garbage_seldom() -> None:
    """For the whole process. What exists now (modules, mostly) is not looked at again. `keep_looking` has to follow."""
    gc.set_threshold(*_THRESHOLDS)
    gc.collect()
    gc.freeze()


async def keep_looking() -> None:
    """Look at everything every few minutes, for ever."""
    while True:
        await asyncio.sleep(_EVERY_S)
        gc.collect()
