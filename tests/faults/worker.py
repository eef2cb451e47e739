"""The rig's own way into nearcast: patches the seams of its classes, then runs the ordinary command line.

The product has no hooks for this. Here each named step of a batch is a place where the process can kill or stop itself
(`Plan`), and a few of the product's guards can be taken away (`VARIANTS`) to see that the checkers notice.

A worker is a process of its own (`tests.services.forks`).
"""

import functools
import inspect
import os
import re
import signal
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection

import channels.delivery
import server.log.kafka
from channels.sms import SmsChannel
from geofence.index import FenceIndex
from models.scorer import Scorer
from server.deliveries import DeliveryDesk
from server.log.kafka import KafkaLogConsumer
from server.outbox import ValkeyOutbox
from server.roles import ENGINE_GROUP
from server.state import StateStore
from tests.services.forks import run_command

#: The steps of a batch, and of a message, in their order.
ENGINE_STEPS = ("fetched", "matched", "scored", "before_commit", "after_commit")
DELIVERY_STEPS = ("outbox_read", "sent", "receipt_written")
STEPS = (*ENGINE_STEPS, *DELIVERY_STEPS)

#: How the commit script begins to say that the store has not the offsets that it should have; a regular expression.
_OFFSETS_DIFFER = "(?:other topics|the offset)"


@dataclass(frozen=True)
class Orders:
    """What one worker is told, besides its settings."""

    settings: Mapping[str, str]
    log: Path
    #: A file with `<step>:<n>:<kill|stop>`, or nothing: what happens the n-th time that the step is reached from now.
    plan: Path
    #: How long Kafka believes in a silent worker. The product's 30 s would make every kill cost that much.
    session_ms: int
    #: How long another dispatcher leaves a silent one's entries alone.
    outbox_idle_ms: int
    variant: str = ""


class Plan:
    """Ends or stops this process at the step that the plan file names. Looked up at every step, so it can change."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read: tuple[int, int] | None = None
        self._step, self._left, self._signal = "", 0, signal.SIGKILL

    def reached(self, step: str) -> None:
        self._refresh()
        if step != self._step:
            return
        self._left -= 1
        if self._left == 0:
            self._step = ""
            os.kill(os.getpid(), self._signal)

    def _refresh(self) -> None:
        status = self._path.stat()
        if self._read == (status.st_ino, status.st_mtime_ns):
            return
        self._read = status.st_ino, status.st_mtime_ns
        text = self._path.read_text()
        self._step = ""
        if text:
            self._step, times, action = text.split(":")
            self._left = int(times)
            self._signal = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}[action]


def run(orders: Orders) -> None:
    """The whole life of a worker process."""
    _shorten_patience(orders)
    _place_steps(Plan(orders.plan))
    if orders.variant:
        VARIANTS[orders.variant]()
    run_command(orders.settings, orders.log, orders.log, "serve")


def _shorten_patience(orders: Orders) -> None:
    consumer, outbox = KafkaLogConsumer.__init__, ValkeyOutbox.__init__

    @functools.wraps(consumer)
    def impatient_consumer(self: Any, options: Any, *args: Any, **kwargs: Any) -> None:
        options = msgspec.structs.replace(options, session_timeout_ms=orders.session_ms)
        consumer(self, options, *args, **kwargs)

    @functools.wraps(outbox)
    def impatient_outbox(self: Any, *args: Any, **kwargs: Any) -> None:
        outbox(self, *args, **{"idle_ms": orders.outbox_idle_ms, "upkeep_s": 0.5} | kwargs)

    KafkaLogConsumer.__init__ = impatient_consumer  # type: ignore[method-assign]
    ValkeyOutbox.__init__ = impatient_outbox  # type: ignore[method-assign]
    # In the same proportion to the silence as the product's: a third of it.
    channels.delivery._FRESH_S = orders.outbox_idle_ms / 3_000


def _place_steps(plan: Plan) -> None:
    def of_the_engine(consumer: Any, records: Any) -> bool:
        return bool(records) and consumer._group == ENGINE_GROUP

    _after(KafkaLogConsumer, "fetch", "fetched", plan, of_the_engine)
    _after(FenceIndex, "match", "matched", plan)
    _after(Scorer, "score", "scored", plan, lambda _, scores: bool(scores))
    _before(StateStore, "commit", "before_commit", plan)
    _after(StateStore, "commit", "after_commit", plan)
    _after(ValkeyOutbox, "read", "outbox_read", plan, lambda _, entries: bool(entries))
    _after(SmsChannel, "send", "sent", plan)
    _after(DeliveryDesk, "receipt", "receipt_written", plan)


def _after(owner: type, name: str, step: str, plan: Plan, counts: Callable[[Any, Any], bool] = lambda *_: True) -> None:
    inner = getattr(owner, name)

    @functools.wraps(inner)
    async def awaited(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = await inner(self, *args, **kwargs)
        if counts(self, result):
            plan.reached(step)
        return result

    @functools.wraps(inner)
    def called(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = inner(self, *args, **kwargs)
        if counts(self, result):
            plan.reached(step)
        return result

    setattr(owner, name, awaited if inspect.iscoroutinefunction(inner) else called)


def _before(owner: type, name: str, step: str, plan: Plan) -> None:
    inner = getattr(owner, name)

    @functools.wraps(inner)
    async def awaited(self: Any, *args: Any, **kwargs: Any) -> Any:
        plan.reached(step)
        return await inner(self, *args, **kwargs)

    setattr(owner, name, awaited)


def _without_fencing(refusal: str = "") -> None:
    """Commits are taken that the script would refuse with these words: whatever the epoch and the stored offsets are,
    or whatever one of them is.
    """
    register = Redis.register_script

    @functools.wraps(register)
    def edited(self: Any, script: str) -> Any:
        if "FENCED" in script:
            script, refusals = re.subn(rf"return redis\.error_reply\('FENCED {refusal}[^\n]*", "", script)
            assert refusals, "the commit script refuses in other words now"
        return register(self, script)

    Redis.register_script = edited  # type: ignore[assignment,method-assign]


def _without_idempotency() -> None:
    """Every hand-over to the SMS provider has a key of its own."""
    send = SmsChannel.send

    @functools.wraps(send)
    async def under_another_key(self: Any, outgoing: Any) -> str:
        message = msgspec.structs.replace(outgoing.message, id=uuid.uuid4().hex)
        return await send(self, replace(outgoing, message=message))

    SmsChannel.send = under_another_key  # type: ignore[method-assign]


def _without_replay() -> None:
    """Whoever takes a partition over after others reads on from the end of the log."""
    seek = KafkaLogConsumer.seek

    @functools.wraps(seek)
    async def to_the_end(self: Any, partition: int, after: Mapping[str, str]) -> None:
        begun = [place for place in self._assigned if place.partition == partition and place.topic in after]
        ends = await self._consumer.end_offsets(begun)
        await seek(self, partition, {place.topic: str(ends[place] - 1) for place in begun})

    KafkaLogConsumer.seek = to_the_end  # type: ignore[method-assign]


def _without_doubt() -> None:
    """What was meant to be committed counts as committed: who starts over goes on from there, whatever is stored."""
    _without_fencing(_OFFSETS_DIFFER)
    meant: dict[int, dict[str, str]] = {}
    encode, take = StateStore.encode, StateStore.take

    @functools.wraps(encode)
    def noted(self: Any, batch: Any) -> Any:
        meant.setdefault(batch.partition, {}).update(batch.offsets)
        return encode(self, batch)

    @functools.wraps(take)
    async def as_meant(self: Any, partition: int) -> Any:
        ownership = await take(self, partition)
        return ownership._replace(offsets=ownership.offsets | meant.get(partition, {}))

    StateStore.encode = noted  # type: ignore[method-assign]
    StateStore.take = as_meant  # type: ignore[method-assign]


def _without_acknowledgements() -> None:
    """A record counts as written once it has left for the broker."""
    producer = server.log.kafka.AIOKafkaProducer

    @functools.wraps(producer)
    def careless(**options: Any) -> Any:
        return producer(**options | {"acks": 0, "enable_idempotence": False})

    server.log.kafka.AIOKafkaProducer = careless


def keep_connections_of_cancelled_commands() -> None:
    """A connection whose command was cancelled is used again, with the old reply still on its way."""
    read = AbstractConnection.read_response

    @functools.wraps(read)
    async def kept(self: Any, *args: Any, **kwargs: Any) -> Any:
        return await read(self, *args, **kwargs | {"disconnect_on_error": False})

    AbstractConnection.read_response = kept  # type: ignore[method-assign]


#: Guards that can be taken away, by name.
VARIANTS: dict[str, Callable[[], None]] = {
    "no-fencing": _without_fencing,
    "no-epoch": functools.partial(_without_fencing, "epoch"),
    "no-offsets": functools.partial(_without_fencing, _OFFSETS_DIFFER),
    "no-doubt": _without_doubt,
    "no-acks": _without_acknowledgements,
    "no-idempotency": _without_idempotency,
    "no-replay": _without_replay,
    "crossed-replies": keep_connections_of_cancelled_commands,
}
