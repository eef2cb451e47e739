"""Workers of `tests.server.log.worker`, as a test sees them: what each says it owns and got."""

import asyncio
import contextlib
import os
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import BinaryIO

import msgspec

from tests.server.log.rigs import PARTITIONS
from tests.server.log.worker import MAX_RECORDS, Order, run
from tests.services.forks import CONTEXT, Fork

WITHIN_S = 40.0

Place = tuple[str, int]


class Said(msgspec.Struct):
    """One line of a worker."""

    generation: int
    owned: list[int] | None = None
    batch: list[tuple[str, int, str, str]] | None = None


class Worker:
    """One process, and all that it said."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.said: list[Said] = []
        self._process: Fork | None = None
        self._listening: asyncio.Task[None] | None = None

    async def start(self, order: Order) -> None:
        here, there = CONTEXT.Pipe(duplex=False)
        with here, there:
            self._process = Fork(run, msgspec.json.encode(order), there)
            await self._process.start()
            lines = os.fdopen(os.dup(here.fileno()), "rb")
        self._listening = asyncio.create_task(self._listen(lines), name=f"worker {self.name}")

    async def kill(self) -> None:
        """SIGKILL."""
        assert self._process is not None
        self._process.kill()
        await self._end()

    async def leave(self) -> None:
        """SIGTERM: it says goodbye to its group."""
        assert self._process is not None
        self._process.terminate()
        async with asyncio.timeout(WITHIN_S):
            await self._end()
        assert self._process.returncode == 0

    @property
    def owned(self) -> frozenset[int]:
        """What it was dealt last."""
        return next((frozenset(each.owned) for each in reversed(self.said) if each.owned is not None), frozenset())

    @property
    def generation(self) -> int:
        return next((each.generation for each in reversed(self.said) if each.owned is not None), -1)

    def read(self) -> dict[Place, list[str]]:
        """The values it got in its present generation, by topic and partition."""
        values: dict[Place, list[str]] = defaultdict(list)
        for said in self.said:
            if said.generation == self.generation:
                for topic, partition, _, value in said.batch or ():
                    values[topic, partition].append(value)
        return values

    def check(self, written: dict[Place, list[str]]) -> None:
        """Whatever happened: bounded batches, of partitions owned at that generation, each in order from its start."""
        owned: dict[int, list[int]] = {}
        values: dict[tuple[int, Place], list[str]] = defaultdict(list)
        for said in self.said:
            if said.owned is not None:
                assert said.generation > max(owned, default=-1), f"{self.name}: a generation came twice"
                owned[said.generation] = said.owned
            if said.batch is not None:
                assert len(said.batch) <= MAX_RECORDS
                for topic, partition, _, value in said.batch:
                    assert partition in owned[said.generation], f"{self.name} got a record that was not its own"
                    values[said.generation, (topic, partition)].append(value)
        for (_, place), got in values.items():
            assert got == written[place][: len(got)], f"{self.name} got the records of {place} in another order"

    async def _listen(self, lines: BinaryIO) -> None:
        reader = asyncio.StreamReader(limit=10 * 2**20)
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), lines
        )
        async for line in reader:
            # A killed process may leave half a line behind.
            if line.endswith(b"\n"):
                self.said.append(msgspec.json.decode(line, type=Said))
        transport.close()

    async def _end(self) -> None:
        assert self._process is not None
        assert self._listening is not None
        await self._process.wait()
        await self._listening


@contextlib.asynccontextmanager
async def crew(names: str) -> AsyncIterator[list[Worker]]:
    """Workers that are not started yet, one per letter; whatever runs in the end is killed."""
    workers = [Worker(name) for name in names]
    try:
        yield workers
    finally:
        for worker in workers:
            if worker._process is not None:
                await worker.kill()


async def dealt(workers: Sequence[Worker]) -> None:
    """Wait until the workers own each partition once, as evenly as can be."""

    def fair() -> bool:
        shares = [len(worker.owned) for worker in workers]
        union = frozenset().union(*(worker.owned for worker in workers))
        return sum(shares) == PARTITIONS == len(union) and max(shares) - min(shares) <= 1

    deadline = time.monotonic() + WITHIN_S
    while not fair():
        assert time.monotonic() < deadline, f"not dealt out: { {each.name: each.owned for each in workers} }"
        await asyncio.sleep(0.02)


async def delivered(workers: Iterable[Worker], written: dict[Place, list[str]]) -> None:
    """Wait until everything written has come to the owner of its partition."""
    deadline = time.monotonic() + WITHIN_S
    for worker in workers:
        while worker.read() != (
            expected := {place: values for place, values in written.items() if place[1] in worker.owned}
        ):
            assert time.monotonic() < deadline, f"{worker.name} got {dict(worker.read())}, not {expected}"
            await asyncio.sleep(0.02)
