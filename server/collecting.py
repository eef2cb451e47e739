"""How often Python looks for garbage in a process that keeps the records of many customers."""

import gc

#: Objects that may be garbage, before the young ones are looked at; and how many looks at those of one generation come
#: before one at the next. Python's own 700, 10 and 10 mean a look every few fixes, and every few seconds one at all the
#: records in the cache, which takes a tenth of a second. Nearly nothing of ours is a cycle: what is not used any more
#: goes at once, without anybody looking.
_THRESHOLDS = (50_000, 20, 100)


def look_for_garbage_seldom() -> None:
    """For the whole process. What exists now (modules, the world) is not looked at again."""
    gc.set_threshold(*_THRESHOLDS)
    gc.collect()
    gc.freeze()
