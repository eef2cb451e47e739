"""Kafka killed as a power cut would, and started again on what it had written."""

import asyncio
import os
from signal import SIGKILL, SIGSTOP

from tests.faults.history import History
from tests.services.kafka import KafkaBroker


async def kill(broker: KafkaBroker, history: History) -> None:
    process = broker._process
    assert process is not None
    os.killpg(process.pid, SIGKILL)
    await process.wait()
    history.note("killed", what_else="the broker")


def stop(broker: KafkaBroker, history: History) -> None:
    """SIGSTOP: its socket still takes what is sent, and nobody reads it. `kill` ends that."""
    process = broker._process
    assert process is not None
    os.killpg(process.pid, SIGSTOP)
    history.note("stopped", what_else="the broker")


async def start(broker: KafkaBroker, history: History) -> None:
    await broker.start()
    history.note("started", what_else="the broker")


async def restart(broker: KafkaBroker, history: History, after_s: float = 0.0) -> None:
    await kill(broker, history)
    await asyncio.sleep(after_s)
    await start(broker, history)
