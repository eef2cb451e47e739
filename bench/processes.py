"""What the benchmarks' processes say to each other, and what the kernel says about them."""

import asyncio
import contextlib
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, TypeVar

import msgspec

ROOT = Path(__file__).parents[1]
PARTITIONS = 4
#: Topic and partition.
Place = tuple[str, int]
_TICKS = os.sysconf("SC_CLK_TCK")
#: A whole phase of a benchmark, on a slow machine.
_ANSWER_WITHIN_S = 3_600.0
_LINE_BYTES = 1 << 24

T = TypeVar("T")


class Ends(msgspec.Struct, array_like=True):
    """The last position of one place, as the log writes it."""

    topic: str
    partition: int
    position: str


class Order(msgspec.Struct, omit_defaults=True):
    """What the engine's process shall do: let records through, until those up to `ends` are committed."""

    #: None: let them through, and answer at once with `Ready`.
    ends: list[Ends] | None = None
    #: Only answer with `Ready`.
    status: bool = False
    #: Where to write the times of commits when they have ended, as a JSON list of `Commit`s.
    commits: str = ""
    #: Note the times of commits from now on; in a long run they would need ever more memory.
    record: bool = False


class Commit(msgspec.Struct, array_like=True):
    """Everything of a partition up to these positions, by topic, was committed at this monotonic time."""

    at_ns: int
    partition: int
    positions: dict[str, str]


class Phase(msgspec.Struct):
    """What the engine's process did from letting records through to the last commit."""

    seconds: float
    cpu_s: float
    #: By stage, in seconds, as `nearcast_batch_seconds` has them.
    stages: dict[str, float]
    batches: float
    #: Counters of the engine, summed over their labels.
    counters: dict[str, float]
    rss_bytes: int
    #: Start and end on the clock of `time.monotonic`, which all processes of a machine share.
    started_s: float
    ended_s: float


class Ready(msgspec.Struct):
    """The engine's process has all its parts. `partitions` are the ones it owns now."""

    partitions: list[int]
    rss_bytes: int


def write(answer: msgspec.Struct) -> None:
    """A line of ours, to whoever started this process."""
    sys.stdout.buffer.write(msgspec.json.encode(answer) + b"\n")
    sys.stdout.buffer.flush()


class Usage(NamedTuple):
    """Resident memory, open file descriptors and processor time of a process."""

    rss_bytes: int
    descriptors: int
    cpu_s: float


def usage(pid: int) -> Usage:
    """As the kernel tells them (Linux)."""
    folder = Path(f"/proc/{pid}")
    pages = int((folder / "statm").read_text().split()[1])
    # The name, in parentheses, may hold anything; user and system time are the 12th and 13th field after it.
    times = (folder / "stat").read_text().rpartition(")")[2].split()
    return Usage(
        pages * os.sysconf("SC_PAGE_SIZE"),
        len(list((folder / "fd").iterdir())),
        (int(times[11]) + int(times[12])) / _TICKS,
    )


def environment(**more: str) -> dict[str, str]:
    """Ours, without any setting of nearcast's but those given."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("NEARCAST_")}
    return kept | {"PYTHONPATH": str(ROOT)} | more


class Process:
    """A Python module of ours in a process of its own, which reads and writes JSON lines; it logs to a file."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path) -> None:
        self._process = process
        self._log = log
        self.pid = process.pid

    @classmethod
    async def start(
        cls, log: Path, module: str, *arguments: str, python: str = sys.executable, settings: Mapping[str, str] = {}
    ) -> "Process":
        with log.open("ab") as output:
            process = await asyncio.create_subprocess_exec(
                *(python, "-m", module, *arguments),
                cwd=ROOT,
                env=environment(**settings),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=output,
                limit=_LINE_BYTES,
            )
        return cls(process, log)

    async def tell(self, order: msgspec.Struct) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(msgspec.json.encode(order) + b"\n")
        await self._process.stdin.drain()

    async def answer(self, kind: type[T]) -> T:
        """The next line it writes; RuntimeError with what it logged if it ends instead."""
        assert self._process.stdout is not None
        async with asyncio.timeout(_ANSWER_WITHIN_S):
            line = await self._process.stdout.readline()
        if not line:
            code = await self._process.wait()
            raise RuntimeError(f"a process ended (exit code {code}):\n{self._log.read_text(errors='replace')[-4000:]}")
        return msgspec.json.decode(line, type=kind)

    async def ask(self, order: msgspec.Struct, kind: type[T]) -> T:
        await self.tell(order)
        return await self.answer(kind)

    async def stop(self) -> None:
        """Ends at the end of its input, or is killed."""
        if self._process.returncode is None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            try:
                async with asyncio.timeout(20):
                    await self._process.wait()
            except TimeoutError:
                with contextlib.suppress(ProcessLookupError):
                    self._process.kill()
                await self._process.wait()
