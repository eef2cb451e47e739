"""A channel that does as it is told: for tests and dry runs.

It is a real `Channel`, idempotent by message id like the providers. Each send takes the next step of the script; once
the script has ended every send is accepted. Nothing leaves the process.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Iterable

from channels.contract import Outgoing
from nearcast import events
from nearcast.errors import NearcastError, RetrySend
from nearcast.ids import MessageId

log = logging.getLogger("nearcast.channels")

#: One step: "accept" it, "accept_then_fail" (taken, but the caller is told to retry), "hang" until cancelled after
#: having taken it, or raise the given error.
Step = str | NearcastError


class StubChannel:
    """Records what it was given: `calls` in order, and `held`, one message per id, as a provider would have them."""

    def __init__(self, name: events.Channel, script: Iterable[Step] = ()) -> None:
        self._name = name
        self._script = deque(script)
        self.calls: list[Outgoing] = []
        self.held: dict[MessageId, Outgoing] = {}

    @property
    def name(self) -> events.Channel:
        return self._name

    async def send(self, outgoing: Outgoing) -> str:
        self.calls.append(outgoing)
        step = self._script.popleft() if self._script else "accept"
        if isinstance(step, NearcastError):
            raise step
        self.held.setdefault(outgoing.message.id, outgoing)
        log.info("dry run: message %s on %s", outgoing.message.id, self._name)
        if step == "accept_then_fail":
            raise RetrySend("accepted, then timed out")
        if step == "hang":
            await asyncio.Event().wait()
        return f"stub-{outgoing.message.id}"

    async def close(self) -> None:
        """Nothing to let go of."""
