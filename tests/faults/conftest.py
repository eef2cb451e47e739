"""Fixtures of the fault recipes, and what a failure of one shows: the seed, how to repeat it, the history's end."""

import os
from collections.abc import AsyncIterator, Generator
from pathlib import Path

import pytest

from nearcast.topics import CATALOGUE_TOPICS, CUSTOMER_TOPICS
from tests.faults.history import History
from tests.faults.rig import Rig, open_rig
from tests.faults.traffic import PARTITIONS
from tests.services.kafka import KafkaBroker, Tansu, create_topics, delete_topics

_SEEDS = [int(seed) for seed in os.environ.get("NEARCAST_TEST_SEED", "1").split(",")]
_HISTORY = pytest.StashKey[History]()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every recipe runs once per seed of `NEARCAST_TEST_SEED` (comma-separated; 1 if not set)."""
    if "seed" in metafunc.fixturenames:
        metafunc.parametrize("seed", _SEEDS, ids=lambda seed: f"seed{seed}", scope="module")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Function) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed and _HISTORY in item.stash:
        seed = item.callspec.params.get("seed", "")
        command = f"NEARCAST_TEST_SEED={seed} .venv/bin/pytest '{item.nodeid}' -m 'long or not long'"
        history = item.stash[_HISTORY]
        report.sections.append(("fault rig", f"again: {command}\nhistory: {history.path}\n{history.tail()}"))
    return report


@pytest.fixture(scope="session")
def real_kafka(kafka_broker: KafkaBroker | None) -> KafkaBroker:
    """The session's broker, which recipes may kill. Apache Kafka only: what a stand-in survives proves nothing."""
    if kafka_broker is None or isinstance(kafka_broker, Tansu):
        pytest.skip("the fault recipes need an Apache Kafka of this test session")
    return kafka_broker


@pytest.fixture
async def empty_log(real_kafka: KafkaBroker) -> str:
    """Bootstrap address of the broker, with nearcast's topics and nothing in them."""
    await delete_topics(real_kafka.bootstrap)
    await create_topics(real_kafka.bootstrap, dict.fromkeys((*CUSTOMER_TOPICS, *CATALOGUE_TOPICS), PARTITIONS))
    return real_kafka.bootstrap


@pytest.fixture
async def rig(request: pytest.FixtureRequest, tmp_path: Path, empty_log: str, seed: int) -> AsyncIterator[Rig]:
    """A rig of the test's own, without workers yet."""
    history = History(tmp_path / "history.jsonl")
    request.node.stash[_HISTORY] = history
    async with open_rig(tmp_path, empty_log, seed, history) as rig:
        yield rig
