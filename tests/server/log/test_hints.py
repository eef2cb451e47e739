"""Hints: seldom, in the background, and none lost at the end."""

import asyncio

from server.log.hints import Hints


class Flushed:
    """What was there at each flush."""

    def __init__(self, every_s: float) -> None:
        self.value = 0
        self.seen: list[int] = []
        self.hints = Hints("test", self._flush, every_s)

    async def _flush(self) -> None:
        self.seen.append(self.value)

    def change(self, times: int) -> None:
        for _ in range(times):
            self.value += 1
            self.hints.soon()


async def test_a_burst_is_flushed_once_and_its_rest_at_the_end() -> None:
    """The first at once, what follows within the interval together, at the latest by `stop`."""
    flushed = Flushed(every_s=3_600)
    flushed.change(1_000)
    assert flushed.seen == []
    await asyncio.sleep(0)
    assert flushed.seen == [1_000]
    flushed.change(1_000)
    await asyncio.sleep(0)
    assert flushed.seen == [1_000]
    await flushed.hints.stop()
    assert flushed.seen == [1_000, 2_000]
    await flushed.hints.stop()
    assert flushed.seen == [1_000, 2_000]


async def test_after_its_interval_it_flushes_again() -> None:
    """Nobody has to stop it for that, and nothing is flushed when nothing was asked for."""
    flushed = Flushed(every_s=0.01)
    flushed.change(1)
    await asyncio.sleep(0)
    flushed.change(1)
    async with asyncio.timeout(10):
        while len(flushed.seen) < 2:
            await asyncio.sleep(0.01)
    assert flushed.seen == [1, 2]
    await flushed.hints.stop()
    assert flushed.seen == [1, 2]
    flushed.change(1)
    await flushed.hints.stop()
    assert flushed.seen == [1, 2, 3]
