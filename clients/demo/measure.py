"""What the demo counts, all of it at the receiving end: on devices, in the sinks, in replies, in the server's metrics.

Nothing here is estimated. A latency runs from handing an event to nearcast until the push that names it is in the
device's hands, by the same monotonic clock. `errors` counts what must never happen.
"""

import math
import time
from collections import Counter, deque
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

_COUNTED = (
    "nearcast_transitions_total",
    "nearcast_decisions_total",
    "nearcast_dead_letters_total",
    "nearcast_suppressed_total",
    "nearcast_recalls_total",
)
_LED_TO_NOTHING = {
    ("nearcast_decisions_total", "nothing"),
    ("nearcast_suppressed_total", ""),
    ("nearcast_recalls_total", "recalled"),
    ("nearcast_recalls_total", "stopped"),
}
_KEPT_EVENTS = 50_000


class Reached:
    """One channel's counts: `sent` reached the receiver, `delivered` and `opened` were confirmed to nearcast."""

    def __init__(self) -> None:
        self.sent = 0
        self.delivered = 0
        self.opened = 0

    def as_dict(self) -> dict[str, int]:
        return {"sent": self.sent, "delivered": self.delivered, "opened": self.opened}


class ServerCounters:
    """The server's own counters, added up over restarts of its process."""

    def __init__(self) -> None:
        #: By name, outcome (of a recall: its result) and reason.
        self._before: Counter[tuple[str, str, str]] = Counter()
        self._latest: Counter[tuple[str, str, str]] = Counter()

    def read(self, text: str) -> None:
        """Take in one answer of `/metrics`. A sample that fell means that the process is a new one."""
        seen: Counter[tuple[str, str, str]] = Counter()
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name in _COUNTED:
                    labels = sample.labels
                    outcome = labels.get("outcome", labels.get("result", ""))
                    seen[sample.name, outcome, labels.get("reason", "")] += int(sample.value)
        if any(seen[key] < value for key, value in self._latest.items()):
            self._before += self._latest
        self._latest = seen

    def by_outcome(self, name: str) -> dict[str, int]:
        found: Counter[str] = Counter()
        for (counter, outcome, _), value in sorted((self._before + self._latest).items()):
            if counter == name:
                found[outcome] += value
        return dict(found)

    def why_not(self) -> dict[str, int]:
        """By reason: moments that led to nothing, messages that were not sent, and those that were taken back."""
        found: Counter[str] = Counter()
        for (counter, outcome, reason), value in (self._before + self._latest).items():
            if (counter, outcome) in _LED_TO_NOTHING:
                found[reason] += value
        return dict(found)

    def total(self, name: str) -> int:
        return sum(self.by_outcome(name).values())


class Measure:
    """All counts of one run."""

    def __init__(self) -> None:
        self.websocket, self.sms, self.email = Reached(), Reached(), Reached()
        self.events_in = 0
        self.applied = 0
        self.redeemed = 0
        self.claims = 0
        self.errors: Counter[str] = Counter()
        self.duplicates: Counter[str] = Counter()
        self.server = ServerCounters()
        self._handed: dict[str, tuple[float, str]] = {}
        self._order: deque[str] = deque()
        self._latencies_ms: list[float] = []
        self._received: set[tuple[str, str]] = set()

    def handed_over(self, event: str, customer: str) -> None:
        """The customer's event is about to be given to nearcast for the first time."""
        self._handed[event] = time.monotonic(), customer
        self._order.append(event)
        if len(self._order) > _KEPT_EVENTS:
            self._handed.pop(self._order.popleft(), None)

    def received(self, device: str, message: str, event: str) -> bool:
        """A push is in the device's hands. False if the device had this message before."""
        if (device, message) in self._received:
            self.duplicates["websocket"] += 1
            self.errors["message_twice_on_one_device"] += 1
            return False
        self._received.add((device, message))
        self.websocket.sent += 1
        handed = self._handed.get(event)
        if handed is not None:
            self._latencies_ms.append((time.monotonic() - handed[0]) * 1000)
        return True

    def customer_of(self, event: str) -> str | None:
        """Whose event that was: an alert to staff doesn't say."""
        handed = self._handed.get(event)
        return handed[1] if handed is not None else None

    def percentiles_ms(self) -> dict[str, float | None]:
        """Nearest rank; None as long as there is nothing to rank."""
        ranked = sorted(self._latencies_ms)

        def at(share: float) -> float | None:
            return round(ranked[math.ceil(share * len(ranked)) - 1], 1) if ranked else None

        return {"p50": at(0.50), "p95": at(0.95), "p99": at(0.99)}

    def summary(self) -> dict[str, Any]:
        """The demo's last line."""
        return {
            "events_in": self.events_in,
            "transitions": self.server.total("nearcast_transitions_total"),
            "decisions": self.server.by_outcome("nearcast_decisions_total"),
            "pushes": {
                "websocket": self.websocket.as_dict(),
                "sms": self.sms.as_dict(),
                "email": self.email.as_dict(),
            },
            "coupons": {"applied": self.applied, "redeemed": self.redeemed},
            "event_to_device_ms": self.percentiles_ms(),
            "dead_letters": self.server.total("nearcast_dead_letters_total"),
            "errors": self.errors.total(),
            "errors_by_kind": dict(self.errors),
            "duplicates": {name: self.duplicates[name] for name in ("websocket", "sms", "email")},
            "assists_claimed": self.claims,
        }
