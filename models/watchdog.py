"""Stops a run of a model that takes too long. Counts the CPU time of the thread that runs it, where the system tells
that of another thread: a busy or paused machine doesn't make a model slow, and a decision doesn't depend on it.
"""

import threading
import time
from collections.abc import Callable
from typing import Protocol

#: How often runs are looked at. Only while there are any, and a little longer.
_POLL_S = 0.01
_LINGER_POLLS = 100


class Stoppable(Protocol):
    """onnxruntime's `RunOptions`: the run ends with an exception soon after this is set."""

    terminate: bool


class Watchdog:
    """Watches any number of threads' runs from one thread of its own, which sleeps while there are none."""

    def __init__(self) -> None:
        self._runs: dict[int, tuple[Callable[[], float], float, Stoppable]] = {}
        self._wanted = threading.Event()
        self._awake = False
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()

    def begin(self, run: Stoppable, budget_s: float) -> Callable[[], float]:
        """Stop `run` if the calling thread uses more than `budget_s` until it calls `end`.

        Gives a clock for what was used so far, in seconds.
        """
        if self._thread is None:
            self._start()
        clock = _clock_of_this_thread()
        began_s = clock()
        self._runs[threading.get_ident()] = (clock, began_s + budget_s, run)
        if not self._awake:
            self._wanted.set()
        return lambda: clock() - began_s

    def end(self) -> None:
        """The calling thread's run is over."""
        self._runs.pop(threading.get_ident(), None)

    def _start(self) -> None:
        with self._starting:
            if self._thread is None:
                self._thread = threading.Thread(target=self._watch, name="model watchdog", daemon=True)
                self._thread.start()

    def _watch(self) -> None:
        while True:
            self._wanted.wait()
            self._wanted.clear()
            self._awake = True
            idle = 0
            while idle < _LINGER_POLLS:
                time.sleep(_POLL_S)
                idle = 0 if self._runs else idle + 1
                for clock, ends_s, run in list(self._runs.values()):
                    if _reached(clock, ends_s):
                        run.terminate = True
            self._awake = False
            if self._runs:
                # It began when we were about to sleep.
                self._wanted.set()


def _reached(clock: Callable[[], float], ends_s: float) -> bool:
    try:
        return clock() > ends_s
    except OSError:
        # The thread has ended, so its run has, too.
        return False


def _clock_of_this_thread() -> Callable[[], float]:
    if not hasattr(time, "pthread_getcpuclockid"):
        return time.monotonic
    number = time.pthread_getcpuclockid(threading.get_ident())
    return lambda: time.clock_gettime(number)
