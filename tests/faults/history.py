"""The driver's own log of a run: what it did and what it was told, one JSON object a line, with seconds since start."""

import json
import logging
import time
from pathlib import Path
from typing import Any

logger = logging.getLogger("faults")


class History:
    """Written as it happens, so that it is complete whatever ends the run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._began_s = time.monotonic()

    def note(self, what: str, **facts: Any) -> None:
        """Add a line, and show it to whoever watches (`make faults`)."""
        at_s = round(time.monotonic() - self._began_s, 3)
        with self.path.open("a") as file:
            file.write(json.dumps({"at_s": at_s, "what": what, **facts}) + "\n")
        logger.info("%7.2f s  %s %s", at_s, what, " ".join(f"{name}={value}" for name, value in facts.items()))

    def tail(self, lines: int = 40) -> str:
        return "\n".join(self.path.read_text().splitlines()[-lines:]) if self.path.exists() else ""
