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
FALL_BACKS = Counter(
    "nearcast_fall_backs_total",
    "Messages that no device acknowledged in time, so that the next channel's turn came, by the channel that had them.",
    ["channel"],
)
RECALLS = Counter(
    "nearcast_recalls_total",
    "Messages that were to be taken back, by reason and result: recalled; stopped (nothing had left the house yet); or "
    "left alone, since the customer had opened or applied it, or it had ended. Each recalled one is counted once.",
    ["reason", "result"],
)
OPT_OUT_WAITS = Counter(
    "nearcast_opt_out_waits_total",
    "Withdrawals of consent that had to wait for a hand-over under way, by result: over; given_up after 6 s, when a "
    "provider hangs or a dispatcher has died: that one message may arrive after the answer.",
    ["result"],
)
LIVE_SITUATIONS = Gauge(
    "nearcast_live_situations",
    "Situations (promotion, store, thing) of offers that are out, in all partitions: every dispatcher says the same.",
)
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
DELIVERY_STAGE = Histogram(
    "nearcast_delivery_stage_seconds",
    "Where the time of a message that was sent went: from its event's arrival in the log until the engine has it "
    "(log), until it is committed (decide), until a dispatcher has it (queue), until it is handed to its channel "
    "(dispatch); then, of messages to devices, until it is written to a socket (socket) and acknowledged (ack).",
    ["stage"],
    buckets=(*_SECONDS, 10.0, 30.0, 60.0),
)
EVENT_TO_DEVICE = Histogram(
    "nearcast_event_to_device_seconds",
    "From an event's arrival in the log until the message that follows is written to a device's socket (socket), and "
    "until the device has acknowledged it (ack).",
    ["until"],
    buckets=(0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
)
LAG = Gauge(
    "nearcast_lag_records", "Records not yet processed, by topic; rising means the engine is too slow.", ["topic"]
)
OUTBOX = Gauge("nearcast_outbox_entries", "Entries in the outboxes of owned partitions; rising means sends are stuck.")
OWNED_PARTITIONS = Gauge("nearcast_owned_partitions", "Partitions this engine owns.")
WORLD_BROKEN = Gauge(
    "nearcast_world_broken", "1 while the stored world can't be used and the last good one stands in; see the log."
)
REFUSED = Counter(
    "nearcast_refused_connections_total",
    "Connections refused at the gateway's door, by HTTP status (none: it was cut off) and reason: too many of its "
    "address (address) or in all (full), a storm (newcomers), a node that stops (stopping), no proper request "
    "(request), commands that can't be taken now (post).",
    ["status", "reason"],
)
TASK_FAILURES = Counter("nearcast_task_failures_total", "Background tasks that failed and were restarted.", ["task"])
CONSUMER_RESTARTS = Counter(
    "nearcast_consumer_restarts_total",
    "Times a consumer's connections to the log were made anew because records waited without progress. Look at the "
    "brokers and the network between.",
    ["consumer"],
)
MODEL_ROWS = Counter(
    "nearcast_model_rows_total",
    "Rows that a model was asked about, by result: scored; or, with the fallback score instead, not_a_probability, "
    "failed, slow, set_aside, no_model. Anything but scored: see the log, then `nearcast models rollback`.",
    ["model", "result"],
)
MODEL_ROLES = Gauge(
    "nearcast_model_roles", "1 for each model that this process uses, by kind and role.", ["kind", "role", "model"]
)
MODEL_SET_ASIDE = Gauge(
    "nearcast_model_set_aside",
    "1 while a model is left alone because it failed or was slow three times in a row; the fallback score serves.",
    ["model"],
)
MODEL_BROKEN = Gauge(
    "nearcast_model_broken",
    "1 while a model that this kind should use can't be loaded and what served before goes on; see the log.",
    ["kind"],
)
MODEL_PSI = Gauge(
    "nearcast_model_psi",
    "Population stability index of the last hour's rows against the training rows, by feature; of the scores: `score`. "
    "From 0.1 on look, from 0.25 on train again.",
    ["model", "feature"],
)
MODEL_SCORE_SHIFT = Gauge(
    "nearcast_model_score_shift", "Mean score of the last hour less the mean score of the training rows.", ["model"]
)
SHADOW_DIFFERENCE = Histogram(
    "nearcast_model_shadow_difference",
    "Difference between a shadow model's probability and the one that decided, by row.",
    ["model"],
    buckets=(0.0001, 0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0),
)
SHADOW_WINNERS = Counter(
    "nearcast_model_shadow_winners_total",
    "Moments with several candidates, by whether the shadow model finds the same one most likely: same, other.",
    ["model", "result"],
)
