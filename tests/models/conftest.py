"""Real history and a model trained on it: a few hundred households, read and trained once."""

from pathlib import Path

import pytest

from models.training.dataset import Dataset
from models.training.extract import extract
from models.training.history import History, load, package_folder
from models.training.redeem import RedeemTask
from models.training.train import Report, run

HOUSEHOLDS = 300


@pytest.fixture(scope="session")
def history() -> History:
    """Part of the real year of purchases, campaigns and redemptions."""
    return load(package_folder(), HOUSEHOLDS)


@pytest.fixture(scope="session")
def dataset(history: History) -> Dataset:
    """The rows of that history."""
    return extract(history, RedeemTask())


@pytest.fixture(scope="session")
def heard() -> list[tuple[str, float]]:
    """What training told of its progress; filled by `trained`."""
    return []


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, heard: list[tuple[str, float]]) -> Report:
    """A model trained on the same part, in `Path(trained.folder)`."""
    folder: Path = tmp_path_factory.mktemp("models") / "redeem"
    return run(folder, households=HOUSEHOLDS, progress=lambda stage, fraction: heard.append((stage, fraction)))
