"""A real `nearcast serve`, started and stopped by a test; and where to ask it.

It is forked, which is quicker than to start Python anew. The command that people type is what `test_readme.py`,
`test_demo.py` and the tests of the other commands start.
"""

import asyncio
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import httpx
import jwt

from clients.client import Nearcast
from tests.services.forks import Fork, run_command
from tests.services.ports import free_ports

KEYS = {role: f"key-of-{role}-for-tests" for role in ("intake", "pos", "admin", "staff")}
SECRET = "a-secret-of-the-tests-with-more-than-32-bytes"
READY_WITHIN_S = 60.0


class Server:
    """One process with settings of its own. `start` again after `kill`: same data, ports and secrets."""

    def __init__(self, folder: Path, **settings: str) -> None:
        self.folder = folder
        self.api_port, self.gateway_port = free_ports(2)
        self.settings = {
            "NEARCAST_DATA_DIR": str(folder / "data"),
            "NEARCAST_API_PORT": str(self.api_port),
            "NEARCAST_GATEWAY_PORT": str(self.gateway_port),
            "NEARCAST_API_KEYS": json.dumps(KEYS),
            "NEARCAST_TOKEN_SECRET": SECRET,
            "NEARCAST_COUPON_SECRET": SECRET,
            "NEARCAST_LINK_SECRET": SECRET,
            "NEARCAST_QUIET_HOURS": "",
            **{f"NEARCAST_{name.upper()}": value for name, value in settings.items()},
        }
        #: Where it says that it is ready: the gateway, where there is no API.
        self.ready_url = f"{self.url}/ready"
        if "api" not in self.settings.get("NEARCAST_ROLES", "api"):
            self.ready_url = f"http://127.0.0.1:{self.gateway_port}/health"
        self.process: Fork | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.api_port}"

    @property
    def gateway(self) -> str:
        return f"ws://127.0.0.1:{self.gateway_port}/connection/websocket"

    @property
    def environment(self) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("NEARCAST_")}
        return inherited | self.settings

    @property
    def log_file(self) -> Path:
        return self.folder / "nearcast.log"

    @property
    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    def client(self, role: str = "admin") -> Nearcast:
        return Nearcast(self.url, KEYS[role])

    def token(self, sub: str, role: str = "customer", channels: tuple[str, ...] = ()) -> str:
        now_s = int(time.time())
        claims = {"sub": sub, "role": role, "channels": list(channels), "iat": now_s, "exp": now_s + 3_600}
        return jwt.encode(claims, SECRET, algorithm="HS256")

    def fork(self) -> Fork:
        """Its process, not started yet."""
        return Fork(run_command, self.settings, self.log_file, self.log_file, "serve")

    async def start(self, *, wait: bool = True) -> None:
        self.log_file.touch()
        self.process = self.fork()
        await self.process.start()
        if wait:
            await self.until_ready()

    async def until_ready(self) -> None:
        assert self.process is not None
        async with asyncio.timeout(READY_WITHIN_S), httpx.AsyncClient(trust_env=False) as http:
            while True:
                assert self.process.returncode is None, self.log
                try:
                    if (await http.get(self.ready_url)).status_code == 200:
                        return
                except httpx.HTTPError:
                    pass
                await asyncio.sleep(0.05)

    async def kill(self) -> None:
        """SIGKILL."""
        assert self.process is not None
        self.process.kill()
        await self.process.wait()

    async def exit_code(self) -> int:
        """Of a process that ends by itself; one that doesn't within half a minute is killed, and fails the test."""
        assert self.process is not None
        try:
            async with asyncio.timeout(30):
                return await self.process.wait()
        except TimeoutError:
            await self.kill()
            raise

    async def stop(self) -> int:
        """SIGTERM; the exit code."""
        if self.process is None:
            return 0
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(30):
                await self.process.wait()
        code = self.process.returncode
        assert code is not None
        return code

    async def __aenter__(self) -> "Server":
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        if self.process is not None and self.process.returncode is None:
            try:
                await self.stop()
            except TimeoutError:
                await self.kill()


async def eventually(check: Any, within_s: float = 20.0) -> Any:
    """The first truthy answer of `check` (called again and again); its last answer is shown if none comes."""
    deadline = time.monotonic() + within_s
    while not (answer := await check()):
        assert time.monotonic() < deadline, f"not within {within_s} s: {answer!r}"
        await asyncio.sleep(0.05)
    return answer


async def decisions(server: Server, customer: str) -> list[dict[str, Any]]:
    """What was decided about a customer, newest first, as the API tells it."""
    async with httpx.AsyncClient(trust_env=False, headers={"Authorization": f"Bearer {KEYS['admin']}"}) as http:
        answer = await http.get(f"{server.url}/v1/customers/{customer}/decisions")
        answer.raise_for_status()
        found: list[dict[str, Any]] = answer.json()["decisions"]
        return found
