"""`nearcast serve` as a child process: private data directory, free ports, random secrets, loopback only."""

import asyncio
import contextlib
import ctypes
import json
import os
import secrets
import signal
import socket
import sys
import time
from pathlib import Path

import jwt

_STOP_S = 15.0
_TOKEN_S = 12 * 3_600
_TAIL_LINES = 15


_libc = ctypes.CDLL(None) if sys.platform == "linux" else None
_PR_SET_PDEATHSIG = 1


def _die_with_parent() -> None:
    """A demo that is killed must not leave a server behind: the kernel kills it as well (Linux)."""
    if _libc is not None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def free_ports(count: int) -> list[int]:
    """Ports that were free on loopback a moment ago, all different."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]


class Child:
    """The server process. The same instance can be started again after a stop or a kill: same data, ports, secrets."""

    def __init__(self, folder: Path, api_port: int | None, sms: tuple[str, str, str], smtp_port: int) -> None:
        """`sms` is the SMS provider's URL, account and auth token."""
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        spare, self.gateway_port = free_ports(2)
        self.api_port = spare if api_port is None else api_port
        self._sms, self._smtp_port = sms, smtp_port
        self._keys = {role: secrets.token_urlsafe(24) for role in ("intake", "pos", "admin", "staff")}
        self._token_secret = secrets.token_urlsafe(48)
        self._process: asyncio.subprocess.Process | None = None
        self._started = asyncio.Event()

    @property
    def api_url(self) -> str:
        return f"http://127.0.0.1:{self.api_port}"

    @property
    def gateway_url(self) -> str:
        return f"ws://127.0.0.1:{self.gateway_port}/connection/websocket"

    def key(self, role: str) -> str:
        return self._keys[role]

    def token(self, subject: str, role: str = "customer", channels: tuple[str, ...] = ()) -> str:
        """A gateway token, as the retailer's own backend would mint it."""
        now_s = int(time.time())
        claims = {"sub": subject, "role": role, "channels": list(channels), "iat": now_s, "exp": now_s + _TOKEN_S}
        return jwt.encode(claims, self._token_secret, algorithm="HS256")

    async def start(self) -> None:
        with (self._folder / "nearcast.log").open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                Path(sys.executable).with_name("nearcast"), "serve",
                env=self._environment(), stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log,
                # Ctrl-C is for the driver, which then stops the child in order.
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )  # fmt: skip
        self._started.set()

    async def ended(self) -> int:
        """Until the process ends by itself; its exit code. A `kill` that is followed by a `start` doesn't count."""
        while True:
            code = await self._running().wait()
            if self._started.is_set():
                return code
            await self._started.wait()

    @property
    def pid(self) -> int:
        return self._running().pid

    async def kill(self) -> None:
        """SIGKILL, as a power cut would."""
        process = self._running()
        self._started.clear()
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()

    async def stop(self) -> None:
        """SIGTERM, and SIGKILL if that takes too long."""
        if self._process is None or self._process.returncode is not None:
            return
        self._started.clear()
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(_STOP_S):
                await self._process.wait()
        except TimeoutError:
            await self.kill()

    def log_tail(self) -> str:
        """The last lines that the process wrote."""
        try:
            text = (self._folder / "nearcast.log").read_text(errors="replace")
        except FileNotFoundError:
            return ""
        return "\n".join(text.splitlines()[-_TAIL_LINES:])

    def _running(self) -> asyncio.subprocess.Process:
        if self._process is None:
            raise RuntimeError("the server was not started yet")
        return self._process

    def _environment(self) -> dict[str, str]:
        # The caller's own NEARCAST_ settings must not reach into the demo.
        sms_url, sms_account, sms_auth_token = self._sms
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("NEARCAST_")}
        return inherited | {
            "NEARCAST_DATA_DIR": str(self._folder),
            "NEARCAST_API_PORT": str(self.api_port),
            "NEARCAST_GATEWAY_PORT": str(self.gateway_port),
            "NEARCAST_PUBLIC_URL": self.api_url,
            "NEARCAST_ALLOWED_ORIGINS": json.dumps([self.api_url, f"http://localhost:{self.api_port}"]),
            "NEARCAST_DEMO": "true",
            # Show something at any hour.
            "NEARCAST_QUIET_HOURS": "",
            # The shoppers' day is over in minutes, and starts again.
            "NEARCAST_OFFERS_PER_DAY": "150",
            # They come by every few seconds; in a shop they would not.
            "NEARCAST_ANNOYANCE_WINDOW_S": "120",
            # The shoppers are few, and nobody.
            "NEARCAST_FOOTFALL_K": "2",
            "NEARCAST_API_KEYS": json.dumps(self._keys),
            "NEARCAST_TOKEN_SECRET": self._token_secret,
            "NEARCAST_SMS_URL": sms_url,
            "NEARCAST_SMS_ACCOUNT": sms_account,
            "NEARCAST_SMS_AUTH_TOKEN": sms_auth_token,
            "NEARCAST_SMS_FROM": "+43660550000",
            "NEARCAST_SMTP_HOST": "127.0.0.1",
            "NEARCAST_SMTP_PORT": str(self._smtp_port),
            "NEARCAST_SMTP_SECURITY": "none",
            "NEARCAST_MAIL_FROM": "offers@example.com",
            "NEARCAST_LOG_LEVEL": "warning",
        }
