"""What every test gets: real services, a clean environment, and a failure for anything left running.

Services start once per session (with `-n 2`, once per test process), and only when a test asks for them.
`NEARCAST_TEST_REDIS` and `NEARCAST_TEST_KAFKA` point the tests at others instead (the database named in the URL is
flushed before each test that uses it). `NEARCAST_TEST_BROKER=tansu` makes the session's own Kafka broker the stand-in
of `tests.services.kafka`.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator

import pytest
from hypothesis import HealthCheck, settings
from redis.asyncio import Redis
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from server.log.kafka import KafkaOptions
from tests.services.kafka import KafkaBroker, NoBroker, choose_broker, delete_topics
from tests.services.valkey import ValkeyProcess

TASKS_END_WITHIN_S = 1.0
#: What shares a thing that takes seconds to make (a broker, models, a server, a browser) stays in one test process.
#: Parts of tests' ids.
_TOGETHER = {
    "kafka": ("[kafka", "test_kafka.py", "tests/faults/", "test_on_kafka", "test_a_consumer_whose_connections"),
    "training": ("tests/models/", "tests/server/test_training_cli.py"),
    "sdk": ("tests/sdk/",),
    "clients": ("tests/clients/",),
    "loop": ("tests/bench/test_closed_loop.py",),
    "stories": ("tests/stories/",),
}

_SERVICES = {name: os.environ.get(name, "") for name in ("NEARCAST_TEST_REDIS", "NEARCAST_TEST_KAFKA")}
_BROKER_WISH = os.environ.get("NEARCAST_TEST_BROKER", "")
if _BROKER_WISH not in ("", "tansu"):
    raise pytest.UsageError(f"NEARCAST_TEST_BROKER is {_BROKER_WISH!r}: only `tansu` can be asked for")

_QUIET = [HealthCheck.too_slow]
settings.register_profile("dev", deadline=None, derandomize=True, suppress_health_check=_QUIET)
settings.register_profile("ci", deadline=None, derandomize=True, suppress_health_check=_QUIET, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") == "true" else "dev")


def pytest_configure(config: pytest.Config) -> None:
    """Two test processes would empty each other's databases."""
    if config.getoption("numprocesses", default=None) and any(_SERVICES.values()):
        named = " and ".join(name for name, value in _SERVICES.items() if value)
        raise pytest.UsageError(f"{named} can serve one test process only: add -n 0 (`make test ARGS='-n 0'`)")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first, so that two test processes end at about the same time."""
    items.sort(key=lambda item: "tests/system/" not in item.nodeid)


class _Scheduling(LoadScopeScheduling):
    """Test by test to whoever is free, but for `_TOGETHER`. (xdist's own groups do nothing with pytest 9.2.)"""

    def _split_scope(self, nodeid: str) -> str:
        return next((name for name, parts in _TOGETHER.items() if any(part in nodeid for part in parts)), nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> _Scheduling:
    """How tests are dealt out to test processes."""
    return _Scheduling(config, log)


def pytest_report_header() -> str:
    """Say which Kafka broker the run is against."""
    if _SERVICES["NEARCAST_TEST_KAFKA"]:
        return "kafka broker: the one that NEARCAST_TEST_KAFKA names"
    try:
        kind, why = choose_broker(force_tansu=_BROKER_WISH == "tansu")
    except NoBroker as error:
        return f"kafka broker: none, {error}"
    return f"kafka broker: {kind.name} of this session{f', not Apache Kafka: {why}' if why else ''}"


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of the person who runs the tests reaches the code under test."""
    for name in list(os.environ):
        if name.startswith("NEARCAST_"):
            monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
async def _no_task_left_behind() -> AsyncIterator[None]:
    """A test ends what it started: an asyncio task that outlives it is a failure."""
    before = asyncio.all_tasks()
    yield
    leftovers = asyncio.all_tasks() - before - {asyncio.current_task()}
    if leftovers:
        _, still_running = await asyncio.wait(leftovers, timeout=TASKS_END_WITHIN_S)
        for task in still_running:
            task.cancel()
        assert not still_running, f"tasks left behind: {sorted(str(task) for task in still_running)}"


@pytest.fixture(scope="session")
def valkey_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a Valkey that belongs to this test session."""
    if _SERVICES["NEARCAST_TEST_REDIS"]:
        yield _SERVICES["NEARCAST_TEST_REDIS"]
        return
    valkey = ValkeyProcess(tmp_path_factory.mktemp("valkey"))
    valkey.start()
    yield valkey.url
    valkey.stop()


@pytest.fixture
async def redis(valkey_url: str) -> AsyncIterator[Redis]:
    """A client of the session's Valkey, its database empty."""
    async with Redis.from_url(valkey_url, decode_responses=False) as client:
        await client.flushdb()
        yield client


@pytest.fixture(scope="session")
async def kafka_broker(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[KafkaBroker | None]:
    """The session's own broker, which a test may stop and start; None when `NEARCAST_TEST_KAFKA` names another."""
    if _SERVICES["NEARCAST_TEST_KAFKA"]:
        yield None
        return
    try:
        kind, _ = choose_broker(force_tansu=_BROKER_WISH == "tansu")
    except NoBroker as error:
        if os.environ.get("CI") == "true":
            pytest.fail(f"no Kafka: {error}")
        pytest.skip(f"no Kafka: {error}")
    broker = kind(tmp_path_factory.mktemp("kafka"))
    await broker.start()
    yield broker
    await broker.stop()


@pytest.fixture(scope="session")
def kafka_session_options(kafka_broker: KafkaBroker | None) -> KafkaOptions:
    """How nearcast must be set to work with the session's broker, whatever topics it has."""
    return kafka_broker.options() if kafka_broker else KafkaOptions(bootstrap=_SERVICES["NEARCAST_TEST_KAFKA"])


@pytest.fixture
async def kafka_bootstrap(kafka_session_options: KafkaOptions) -> str:
    """Bootstrap address of a Kafka without topics."""
    await delete_topics(kafka_session_options.bootstrap)
    return kafka_session_options.bootstrap


@pytest.fixture
def kafka_options(kafka_session_options: KafkaOptions, kafka_bootstrap: str) -> KafkaOptions:
    """How nearcast must be set to work with the broker of `kafka_bootstrap`."""
    return kafka_session_options
