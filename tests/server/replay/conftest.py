"""Settings of an installation on each of the two logs."""

import pytest
from redis.asyncio import Redis

from server.log.kafka import KafkaOptions
from tests.server.replay.installation import environment


@pytest.fixture
def streams(redis: Redis, valkey_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty store that is the event log as well, in the settings."""
    for name, value in environment(valkey_url).items():
        monkeypatch.setenv(name, value)
    return "streams"


@pytest.fixture
def kafka(streams: str, kafka_options: KafkaOptions, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty store, and Kafka as the event log, in the settings."""
    monkeypatch.setenv("NEARCAST_KAFKA", kafka_options.bootstrap)
    monkeypatch.setenv("NEARCAST_KAFKA_IDEMPOTENT", str(kafka_options.idempotent).lower())
    return "kafka"


@pytest.fixture(params=["streams", pytest.param("kafka", marks=pytest.mark.kafka)])
def log_kind(request: pytest.FixtureRequest) -> str:
    """Each of the two event logs."""
    return str(request.getfixturevalue(request.param))
