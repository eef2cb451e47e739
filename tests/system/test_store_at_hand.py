"""A server's data, looked after from the command line, whether or not the server runs; and data that isn't its own."""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from redis.asyncio import Redis

from clients.client import Refused
from nearcast import keys, topics
from nearcast.events import Profile
from nearcast.ids import partition_of
from server.log.base import Entry
from server.log.streams import StreamsLog
from server.valkey import Access
from tests.system.process import Server, eventually

PARTITIONS = 4


def store_of(server: Server) -> str:
    """Where the server's own Valkey is."""
    return msgspec.json.decode((server.folder / "data" / "valkey" / "access.json").read_bytes(), type=Access).url


async def command(server: Server, *arguments: str) -> tuple[int, str, str]:
    """`nearcast dead-letters ...` with the server's settings: exit code, output, complaints."""
    process = await asyncio.create_subprocess_exec(
        Path(sys.executable).with_name("nearcast"),
        "dead-letters",
        *arguments,
        env=server.environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def letters(server: Server) -> list[dict[str, Any]]:
    code, out, err = await command(server, "list", "--json")
    assert code == 0, err
    found: list[dict[str, Any]] = json.loads(out)["letters"]
    return found


async def until_buried(server: Server, *before: str) -> None:
    """Wait until the store has other letters than these, and looks itself: the command takes seconds each time."""
    async with Redis.from_url(store_of(server), decode_responses=True) as redis:

        async def buried() -> bool:
            found = {
                f"{partition}:{entry}"
                for partition in range(PARTITIONS)
                for entry, _ in await redis.xrange(keys.dead_letters(partition))
            }
            return bool(found) and found.isdisjoint(before)

        await eventually(buried)


async def test_dead_letters_of_an_embedded_store(tmp_path: Path) -> None:
    """Listed and replayed beside the running server, and without one; what is still wrong is a new letter then."""
    server = Server(tmp_path)
    await server.start()
    log = StreamsLog(store_of(server), PARTITIONS)
    await log.append([Entry(topics.LOCATIONS, "ann", b"no event")])
    await log.stop()
    await until_buried(server)
    (first,) = await letters(server)
    assert (first["reason"], first["key"]) == ("malformed_event", "ann")
    assert await command(server, "replay", first["id"]) == (0, "replayed 1 of 1 dead letters\n", "")
    await until_buried(server, first["id"])
    (second,) = await letters(server)
    assert second["id"] != first["id"]
    assert await server.stop() == 0
    assert [letter["id"] for letter in await letters(server)] == [second["id"]]
    assert await command(server, "drop", second["id"], "--yes") == (0, "dropped 1 of 1 dead letters\n", "")
    # Nothing of the command holds the data directory.
    async with server:
        assert await letters(server) == []


async def test_a_damaged_record_over_http(tmp_path: Path) -> None:
    """The caller is told which kind of trouble it is; the log names nobody."""
    async with Server(tmp_path) as server, server.client() as admin:
        await admin.events([Profile(uid="quirinia-7731", name="Q")])
        async with Redis.from_url(store_of(server)) as redis:
            record = keys.customer(partition_of("quirinia-7731", PARTITIONS), "quirinia-7731")
            await eventually(lambda: redis.exists(record))
            await redis.set(record, b"\xc1")
        with pytest.raises(Refused, match="unreadable_state"):
            await admin.customer("quirinia-7731")
    assert "quirinia" not in server.log
    assert "Traceback" not in server.log


async def test_data_of_another_make(tmp_path: Path) -> None:
    """Another number of partitions, or a layout from the future: the start ends and says what to do."""
    async with Server(tmp_path):
        pass
    server = Server(tmp_path, partitions="5")
    await server.start(wait=False)
    assert await server.exit_code() == 2
    assert "NEARCAST_PARTITIONS is 5, and the customers in this store are spread over 4 partitions" in server.log
    async with Server(tmp_path) as server, Redis.from_url(store_of(server)) as redis:
        await redis.set(keys.data_version(), 99)
    await server.start(wait=False)
    assert await server.exit_code() == 2
    assert "the data in this store has version 99" in server.log
    assert "Traceback" not in server.log
    code, _, complaint = await command(server, "list")
    assert code == 2
    assert "version 99" in complaint
