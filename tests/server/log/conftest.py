"""Each adapter of the event log, with a real server behind it."""

from collections.abc import AsyncIterator, Iterator
from uuid import uuid4

import pytest

from server.log.base import EventLog
from tests.server.log.rigs import KafkaRig, Rig, StreamsRig, running
from tests.services.kafka import KafkaBroker
from tests.services.valkey import ValkeyProcess


@pytest.fixture
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyProcess]:
    """A Valkey that the test may kill."""
    process = ValkeyProcess(tmp_path_factory.mktemp("log"))
    process.start()
    yield process
    process.stop()


@pytest.fixture(params=["streams", pytest.param("kafka", marks=pytest.mark.kafka)])
def rig(request: pytest.FixtureRequest) -> Rig:
    """An adapter and its server."""
    if request.param == "streams":
        return StreamsRig(request.getfixturevalue("valkey"))
    broker: KafkaBroker | None = request.getfixturevalue("kafka_broker")
    return KafkaRig(request.getfixturevalue("kafka_options"), broker)


@pytest.fixture
async def log(rig: Rig) -> AsyncIterator[EventLog]:
    """A log that runs, and is empty."""
    async with running(rig.make_log()) as log:
        yield log


@pytest.fixture
def group() -> str:
    """The name of a group that no other test has used."""
    return uuid4().hex
