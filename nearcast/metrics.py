"""Every metric, declared once. `docs/reference/metrics.md` is made from this table (`nearcast reference metrics`).

`prometheus_client` keeps the values; the roles of one process share its registry.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence

from prometheus_client import REGISTRY, Counter, Gauge, Histogram
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


class BulkHistogram(Collector):
    """A histogram without labels that takes many equal observations at once, for what every event passes.

    `prometheus_client.Histogram` takes about a microsecond for each observation: a tenth of what an event may cost.
    """

    def __init__(self, name: str, documentation: str, buckets: Sequence[float]) -> None:
        self._name = name
        self._documentation = documentation
        self._bounds = tuple(buckets)
        self._counts = [0] * (len(buckets) + 1)
        self._sum = 0.0
        REGISTRY.register(self)

    def observe_many(self, value: float, times: int) -> None:
        """Observe the same value so many times."""
        self._counts[bisect_left(self._bounds, value)] += times
        self._sum += value * times

    def describe(self) -> list[HistogramMetricFamily]:
        return [HistogramMetricFamily(self._name, self._documentation)]

    def collect(self) -> Iterator[HistogramMetricFamily]:
        buckets, below = [], 0
        for bound, count in zip((*map(str, self._bounds), "+Inf"), self._counts, strict=True):
            below += count
            buckets.append((bound, float(below)))
        family = HistogramMetricFamily(self._name, self._documentation)
        family.add_metric([], buckets, self._sum)
        yield family


EVENTS = Counter(
    "nearcast_events_total", "Events folded into customer state, by topic and result.", ["topic", "result"]
)
INTAKE = Counter("nearcast_intake_total", "Events offered over HTTP or WebSocket, by result.", ["result"])
DEAD_LETTERS = Counter(
    "nearcast_dead_letters_total",
    "Records that could not be processed, by reason. Look at them; then fix the producer.",
    ["reason"],
)
TRANSITIONS = Counter("nearcast_transitions_total", "Enter, dwell and exit transitions.", ["kind", "fence_kind"])
UNKNOWN_ZONES = Counter(
    "nearcast_unknown_zones_total", "Ids in the `zones` of fixes that no fence has: typos, or beacons not listed yet."
)
DECISIONS = Counter("nearcast_decisions_total", "Moments decided, by outcome and reason.", ["outcome", "reason"])
SENDS = Counter("nearcast_sends_total", "Send attempts, by channel and status.", ["channel", "status"])
SUPPRESSED = Counter("nearcast_suppressed_total", "Messages dropped by the re-check at send, by reason.", ["reason"])
COUPONS = Counter("nearcast_coupons_total", "Coupon steps, by step and result.", ["step", "result"])
CONNECTIONS = Gauge("nearcast_connections", "Open WebSocket connections of this process.")
DISCONNECTS = Counter("nearcast_disconnects_total", "WebSocket connections closed by the server, by code.", ["code"])
BATCH_SECONDS = Histogram(
    "nearcast_batch_seconds", "Time one engine batch took, by stage.", ["stage"], buckets=_SECONDS
)
BATCH_EVENTS = Histogram(
    "nearcast_batch_events", "Events in one engine batch.", buckets=(1, 10, 50, 100, 250, 500, 1000, 2000, 5000)
)
EVENT_TO_COMMIT = BulkHistogram(
    "nearcast_event_to_commit_seconds", "From arrival in the log to the commit of its effects.", buckets=_SECONDS
)
EVENT_TO_SEND = Histogram(
    "nearcast_event_to_send_seconds",
    "From the moment's event time to the hand-over to a channel.",
    ["channel"],
    buckets=_SECONDS,
)
LAG = Gauge(
    "nearcast_lag_records", "Records not yet processed, by topic; rising means the engine is too slow.", ["topic"]
)
OUTBOX = Gauge("nearcast_outbox_entries", "Entries in the outboxes of owned partitions; rising means sends are stuck.")
OWNED_PARTITIONS = Gauge("nearcast_owned_partitions", "Partitions this engine owns.")
WORLD_BROKEN = Gauge(
    "nearcast_world_broken", "1 while the stored world can't be used and the last good one stands in; see the log."
)
REFUSED = Counter("nearcast_refused_connections_total", "Connections refused at the gateway's door.", ["status"])
TASK_FAILURES = Counter("nearcast_task_failures_total", "Background tasks that failed and were restarted.", ["task"])
CONSUMER_RESTARTS = Counter(
    "nearcast_consumer_restarts_total",
    "Times a consumer's connections to the log were made anew because records waited without progress. Look at the "
    "brokers and the network between.",
    ["consumer"],
)
