"""Processes forked from a server that has imported everything once (`multiprocessing`'s forkserver).

Starting Python and importing nearcast takes two seconds of a core; a fork takes a tenth of one. A `Fork` is asked and
signalled like an `asyncio.subprocess.Process`. None outlives the test run, stopped or not.
"""

import asyncio
import ctypes
import multiprocessing
import os
import signal
import sys
import uuid
from collections.abc import Callable, Mapping
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")
#: There is one fork server for everything that a test process forks, whichever test asks first.
CONTEXT.set_forkserver_preload(["__main__", "server.app", "tests.faults.worker", "tests.server.log.worker"])


class Fork:
    """One process, which calls `target` and ends."""

    def __init__(self, target: Callable[..., object], *arguments: Any) -> None:
        self._process = CONTEXT.Process(target=_live, args=(target, arguments), daemon=True)

    async def start(self) -> None:
        await asyncio.to_thread(self._process.start)

    @property
    def pid(self) -> int:
        pid = self._process.pid
        assert pid is not None
        return pid

    @property
    def returncode(self) -> int | None:
        """None while it runs; minus a signal's number after that signal."""
        return self._process.exitcode

    async def wait(self) -> int:
        while (code := self.returncode) is None:
            await asyncio.sleep(0.01)
        return code

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


async def output_of(settings: Mapping[str, str], folder: Path, *arguments: str) -> tuple[int, str, str]:
    """Run a command of `nearcast`; exit code, stdout, stderr. Both are written to new files in the folder first."""
    files = [folder / f"{uuid.uuid4().hex}.{name}" for name in ("out", "err")]
    command = Fork(run_command, settings, *files, *arguments)
    await command.start()
    try:
        async with asyncio.timeout(120):
            code = await command.wait()
    finally:
        command.kill()
    out, err = [file.read_text() for file in files]
    return code, out, err


def run_command(settings: Mapping[str, str], out: Path, err: Path, *arguments: str) -> None:
    """In a fork: `nearcast` with these settings and no others. Appends what it says to files, line by line."""
    from server import cli

    for name in [name for name in os.environ if name.startswith("NEARCAST_")]:
        del os.environ[name]
    os.environ.update(settings)
    for number, path in ((1, out), (2, err)):
        with path.open("ab") as file:
            os.dup2(file.fileno(), number)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    cli.main(arguments, prog_name="nearcast")


def _live(target: Callable[..., object], arguments: tuple[Any, ...]) -> None:
    # The fork server ends when nobody holds this end of its pipe any more, and the kernel then kills its children
    # (PR_SET_PDEATHSIG).
    os.close(forkserver._forkserver._forkserver_alive_fd)  # type: ignore[attr-defined]
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    target(*arguments)
