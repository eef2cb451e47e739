"""Worker processes as the driver sees them: started, killed, stopped, gone on with."""

import asyncio
import os
import re
import signal
import time
from collections.abc import Mapping
from pathlib import Path

from tests.faults.history import History
from tests.faults.worker import Orders, run
from tests.services.forks import Fork

READY_WITHIN_S = 60.0
_READY = re.compile(r"^nearcast is ready", re.MULTILINE)


class Unexpected(AssertionError):
    """A process ended, or lives on, against the plan."""


class Worker:
    """One nearcast process with roles of its own; `start` again after it died: the same settings, a new process."""

    def __init__(
        self,
        name: str,
        folder: Path,
        settings: Mapping[str, str],
        history: History,
        *,
        variant: str = "",
        session_ms: int = 1_500,
        outbox_idle_ms: int = 1_500,
    ) -> None:
        self.name = name
        self.log_file = folder / f"{name}.log"
        self._plan = folder / f"{name}.plan"
        self._plan.touch()
        self._orders = Orders(settings, self.log_file, self._plan, session_ms, outbox_idle_ms, variant)
        self._history = history
        self._process: Fork | None = None
        self._log_from = 0

    @property
    def log(self) -> str:
        """What the current process has written."""
        text = self.log_file.read_bytes() if self.log_file.exists() else b""
        return text[self._log_from :].decode(errors="replace")

    @property
    def was_started(self) -> bool:
        return self._process is not None

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    @property
    def stopped(self) -> bool:
        """Whether it sleeps after a SIGSTOP."""
        if not self.running:
            return False
        status = Path(f"/proc/{self._pid}/stat").read_text()
        return status.rpartition(")")[2].split()[0] == "T"

    async def start(self) -> None:
        self._log_from = self.log_file.stat().st_size if self.log_file.exists() else 0
        self._process = Fork(run, self._orders)
        await self._process.start()
        self._history.note("started", worker=self.name, pid=self._pid)

    async def ready(self) -> None:
        deadline = time.monotonic() + READY_WITHIN_S
        while not _READY.search(self.log):
            if not self.running or time.monotonic() > deadline:
                raise Unexpected(f"{self.name} did not become ready:\n{self.log[-4_000:]}")
            await asyncio.sleep(0.02)
        self._history.note("ready", worker=self.name)

    def arm(self, step: str, times: int, action: str) -> None:
        """Have it kill or stop itself at the `times`-th time that it comes to `step` from now on."""
        self._write_plan(f"{step}:{times}:{action}")
        self._history.note("armed", worker=self.name, step=step, times=times, action=action)

    def disarm(self) -> None:
        self._write_plan("")

    async def dead(self, within_s: float = 60.0) -> int:
        """Wait until it has ended; its exit code, which is minus the signal's number after one."""
        assert self._process is not None
        deadline = time.monotonic() + within_s
        while (code := self._process.returncode) is None:
            if time.monotonic() > deadline:
                raise Unexpected(f"{self.name} has not come to its end within {within_s} s:\n{self.log[-4_000:]}")
            await asyncio.sleep(0.02)
        self._history.note("died", worker=self.name, code=code)
        return code

    async def asleep(self, within_s: float = 60.0) -> None:
        """Wait until it has stopped itself."""
        deadline = time.monotonic() + within_s
        while not self.stopped:
            if not self.running or time.monotonic() > deadline:
                raise Unexpected(f"{self.name} has not stopped itself:\n{self.log[-4_000:]}")
            await asyncio.sleep(0.02)
        self._history.note("asleep", worker=self.name)

    def signal(self, number: signal.Signals) -> None:
        os.kill(self._pid, number)
        self._history.note("signal", worker=self.name, signal=number.name)

    async def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        if self.running:
            self.signal(signal.SIGKILL)
            await self.dead()
        self.disarm()

    async def stop(self) -> None:
        """SIGTERM, and insist."""
        if not self.running:
            return
        self.signal(signal.SIGTERM)
        try:
            code = await self.dead(within_s=30.0)
        except Unexpected:
            await self.kill()
            raise
        if code:
            raise Unexpected(f"{self.name} ended with {code}:\n{self.log[-4_000:]}")

    @property
    def _pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def _write_plan(self, text: str) -> None:
        fresh = self._plan.with_suffix(".new")
        fresh.write_text(text)
        fresh.replace(self._plan)
