"""Makes the peer's virtual environment, `.cache/quix`, from its lock file, and runs it.

To choose versions anew (its settings library and nearcast's want different versions, so it has neither server nor lock
in common with nearcast; the pinned versions of what both use come from requirements.lock):

    .venv/bin/uv pip compile --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \\
        -c VERSIONS_OF_SHARED_PACKAGES bench/quix/requirements.in -o bench/quix/requirements.lock
"""

import asyncio
import hashlib
import sys
from pathlib import Path

import msgspec

from bench.city import Traffic, Walk
from bench.load import KafkaAppender, Load
from bench.processes import PARTITIONS, ROOT, Process, environment
from nearcast import topics
from tests.services.kafka import create_topics

LOCK = Path(__file__).with_name("requirements.lock")
HOME = ROOT / ".cache" / "quix"
_PREFIX = "quix."


class Result(msgspec.Struct):
    """As `bench.quix.app` writes it."""

    events: int
    seconds: float
    cpu_s: float
    messages: int
    matching: str


async def install() -> str:
    """Make the environment if it isn't there; why that can't be done, or ""."""
    wanted = hashlib.sha256(LOCK.read_bytes()).hexdigest()
    ready = HOME / ".ready"
    if ready.exists() and ready.read_text() == wanted:
        return ""
    uv = Path(sys.executable).with_name("uv")
    if not uv.exists():
        return "there is no uv beside this Python; `make setup` installs it"
    print("installing Quix Streams into .cache/quix (once)", flush=True)
    for command in (
        [uv, "venv", "--quiet", "--clear", "--python", sys.executable, HOME],
        [uv, "pip", "install", "--quiet", "--require-hashes", "--requirement", LOCK],
    ):
        process = await asyncio.create_subprocess_exec(
            *map(str, command),
            env=environment(VIRTUAL_ENV=str(HOME)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        if await process.wait():
            return f"`uv {command[1]} {command[2]}` failed; run it by hand to see why"
    ready.write_text(wanted)
    return ""


async def measure(folder: Path, bootstrap: str, world: Path, walk: Walk, warm_up: Traffic, measured: Traffic) -> Result:
    """The peer's time for `measured`, after `warm_up`; both from one topic of its own."""
    events = Traffic.concatenated(warm_up, measured).all_as(topics.LOCATIONS)
    topic = _PREFIX + topics.LOCATIONS
    await create_topics(bootstrap, {topic: PARTITIONS})
    load = Load(KafkaAppender(bootstrap, _PREFIX), walk.partition_of(PARTITIONS))
    try:
        await load.fill(events)
    finally:
        await load.close()
    process = await Process.start(
        folder / "quix.log",
        "bench.quix.app",
        *("--kafka", bootstrap, "--topic", topic, "--world", str(world), "--state", str(folder / "quix-state")),
        *("--warm-up", str(len(warm_up)), "--events", str(len(measured))),
        python=str(HOME / "bin" / "python"),
    )
    try:
        return await process.answer(Result)
    finally:
        await process.stop()
