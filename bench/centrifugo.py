"""A Centrifugo (version 6) for the benchmark of the gateway: the same tokens, the same channels, the same store.

It runs with its Redis engine, on a Valkey of the benchmark's, or with its memory engine. Customers have a personal
channel with history and recovery, as nearcast's have, from the `channels` claim of their token.
"""

import asyncio
import contextlib
import json
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from bench.processes import environment
from tests.services.ports import free_ports

_READY_WITHIN_S = 30.0
API_KEY = "the-benchmarks-key"


def configuration(port: int, secret: str, redis_url: str | None) -> dict[str, Any]:
    """What is not said here is Centrifugo's default: pings every 25 s, no limit on connections, no compression."""
    channels = {"history_size": 256, "history_ttl": "24h", "force_positioning": True, "force_recovery": True}
    found: dict[str, Any] = {
        "http_server": {"address": "127.0.0.1", "port": port},
        "http_api": {"key": API_KEY},
        "health": {"enabled": True},
        "usage_stats": {"disabled": True},
        "log": {"level": "warn"},
        "client": {"token": {"hmac_secret_key": secret}},
        "channel": {"namespaces": [{"name": name, **channels} for name in ("customer", "store")]},
        "engine": {"type": "memory"},
    }
    if redis_url is not None:
        at = urlsplit(redis_url)
        redis = {"address": f"{at.hostname}:{at.port}", "prefix": "centrifugo"}
        found["engine"] = {"type": "redis", "redis": redis | ({"password": at.password} if at.password else {})}
    return found


class Centrifugo:
    """One in a process of its own, between `start` and `stop`."""

    def __init__(self, program: Path, folder: Path, secret: str, redis_url: str | None) -> None:
        self._program = program
        self._folder = folder
        [self.port] = free_ports(1)
        self._config = configuration(self.port, secret, redis_url)
        self._process: asyncio.subprocess.Process | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    async def start(self) -> None:
        config, log = self._folder / "centrifugo.json", self._folder / "centrifugo.log"
        config.write_text(json.dumps(self._config))
        with log.open("ab") as output:
            self._process = await asyncio.create_subprocess_exec(
                *(self._program, "-c", config),
                env=environment(),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        deadline = time.monotonic() + _READY_WITHIN_S
        async with httpx.AsyncClient(trust_env=False) as http:
            while True:
                with contextlib.suppress(httpx.HTTPError):
                    if (await http.get(f"{self.url}/health")).status_code == 200:
                        return
                if self._process.returncode is not None or time.monotonic() > deadline:
                    await self.stop()
                    raise RuntimeError(f"centrifugo does not answer:\n{log.read_text(errors='replace')[-4000:]}")
                await asyncio.sleep(0.05)

    async def stop(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.terminate()
            try:
                async with asyncio.timeout(10):
                    await self._process.wait()
            except TimeoutError:
                self._process.kill()
                await self._process.wait()
