"""An engine process of the budget storm: the ordinary command line, with a log that soon gives up on the dead."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.log.streams import StreamsLog
from server.state import StateStore
from tests.services.forks import run_command

#: How long the log believes in a silent worker. The product's 10 s would make every kill cost that much.
SESSION_MS = 1_500


@dataclass(frozen=True)
class Orders:
    """What one worker is told."""

    settings: Mapping[str, str]
    log: Path
    variant: str = ""


def run(orders: Orders) -> None:
    """The whole life of the process."""
    log = StreamsLog.__init__

    @functools.wraps(log)
    def impatient(self: Any, *args: Any, **kwargs: Any) -> None:
        log(self, *args, **kwargs | {"session_timeout_ms": SESSION_MS})

    StreamsLog.__init__ = impatient  # type: ignore[method-assign]
    if orders.variant:
        VARIANTS[orders.variant]()
    run_command(orders.settings, orders.log, orders.log, "serve")


def _without_counting() -> None:
    """What decisions use is known to the process that makes them, and committed nowhere."""
    encode = StateStore.encode

    @functools.wraps(encode)
    def forgetful(self: Any, batch: Any) -> Any:
        batch.spent.clear()
        return encode(self, batch)

    StateStore.encode = forgetful  # type: ignore[method-assign]


#: Guards that can be taken away, by name.
VARIANTS: dict[str, Callable[[], None]] = {"used is not committed": _without_counting}
