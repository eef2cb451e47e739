"""The sample retailer and its households, read from the real purchases once per session."""

import pytest

from clients import history, sample, simulator
from clients.demo.stage import Stage, prepare
from clients.history import History

NOW_MS = 1_790_000_000_000
SEED = 7


@pytest.fixture(scope="session")
def told() -> History:
    return history.load(12, SEED, NOW_MS)


@pytest.fixture(scope="session")
def retailer(told: History) -> sample.Retailer:
    wanted = [line.sku for household in told.households for line in household.today[0].lines]
    return sample.build(told.items, wanted, SEED)


@pytest.fixture(scope="session")
def walks(told: History, retailer: sample.Retailer) -> list[simulator.Walk]:
    return simulator.plan(retailer, told.households, SEED)


@pytest.fixture(scope="session")
def stage() -> Stage:
    return prepare(10, SEED)
