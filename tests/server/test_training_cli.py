"""`nearcast train` and `nearcast evaluate`, as typed: on a small part of the real history, kept in a folder."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner, Result

from models.manifest import CARD_FILE, MANIFEST_FILE, MODEL_FILE, read
from models.training.history import package_folder
from server.cli import main

TEST_FROM = pd.Timestamp("2017-08-15")
_TABLES = ("campaign_descriptions", "campaigns", "coupon_redemptions", "coupons", "products", "transactions")
Tables = dict[str, pd.DataFrame]


@pytest.fixture(scope="module")
def tables() -> Tables:
    """What there is of the sixty households that redeemed most often; of what is on sale, some."""
    read_all = {name: pd.read_parquet(package_folder() / f"{name}.parquet") for name in _TABLES}
    keen = read_all["coupon_redemptions"]["household_id"].value_counts().index[:60]
    for name in ("campaigns", "coupon_redemptions", "transactions"):
        read_all[name] = read_all[name][read_all[name]["household_id"].isin(keen)]
    bought = read_all["transactions"]["product_id"].unique()
    for name in ("coupons", "products"):
        read_all[name] = read_all[name][read_all[name]["product_id"].isin(bought)]
    return read_all


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Tables], Path]:
    """Writes tables to a folder, as `--data` takes it."""

    def write(tables: Tables) -> Path:
        folder = tmp_path_factory.mktemp("data")
        for name, table in tables.items():
            table.to_parquet(folder / f"{name}.parquet")
        return folder

    return write


@pytest.fixture(scope="module")
def data(tables: Tables, written: Callable[[Tables], Path]) -> Path:
    """They in a folder."""
    return written(tables)


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """A model trained on them, and what the command said."""
    folder = tmp_path_factory.mktemp("cli") / "redeem"
    return folder, typed("train", "--out", str(folder), "--data", str(data), "--cache", str(data / "rows"))


def typed(*words: str) -> Result:
    return CliRunner().invoke(main, words)


def test_a_model_is_trained_and_judged(trained: tuple[Path, Result], data: Path, tmp_path: Path) -> None:
    """Files as promised, every stage told, and the report states the figures that training did."""
    folder, said = trained
    assert said.exit_code == 0, said.output
    assert {MODEL_FILE, MANIFEST_FILE, CARD_FILE} <= {path.name for path in folder.iterdir()}
    assert all(stage in said.stderr for stage in ("read", "replay", "fit", "export"))
    out = tmp_path / "report.html"
    kept = sorted((path, path.stat().st_mtime_ns) for path in (data / "rows").rglob("*.npz"))
    assert kept
    words = ("--data", str(data), "--cache", str(data / "rows"), "--out", str(out), "--kind", "redeem")
    judged = typed("evaluate", str(folder), *words)
    assert kept == sorted((path, path.stat().st_mtime_ns) for path in (data / "rows").rglob("*.npz"))
    assert judged.exit_code == 0, judged.output
    assert all(stage in judged.stderr for stage in ("read", "replay", "score", "refit", "effects", "write"))
    manifest = read(folder)
    metrics = manifest.metrics["model"]
    line = next(line for line in judged.stdout.splitlines() if line.startswith("model "))
    expected = [f"{x:.3f}" for x in (metrics.auc, metrics.average_precision, metrics.log_loss, metrics.ece)]
    assert line.split()[1:] == expected
    assert "note:" not in judged.stdout
    text = out.read_text(encoding="utf-8")
    assert all(figure in text for figure in expected)
    assert manifest.version in text
    assert list(tmp_path.iterdir()) == [out]


def test_other_data_than_it_was_trained_on(
    trained: tuple[Path, Result], tables: Tables, written: Callable[[Tables], Path], tmp_path: Path
) -> None:
    """Refused unless it's meant; then data without outcomes, or without later rows, are named. Nothing is written."""
    folder, _ = trained
    redeemed = tables["coupon_redemptions"]
    quiet = tables | {"coupon_redemptions": redeemed[redeemed["redemption_date"] < TEST_FROM]}
    starts = tables["campaign_descriptions"]
    early = tables | {"campaign_descriptions": starts[starts["start_date"] < TEST_FROM]}
    out = tmp_path / "report.html"
    for changed, complaint in ((quiet, "lack the outcome"), (early, "there are no rows from 2017-08-15 on")):
        words = ("evaluate", str(folder), "--data", str(written(changed)), "--out", str(out))
        refused = typed(*words)
        assert refused.exit_code == 2
        assert "was trained on data with the fingerprint" in refused.stderr
        assert "--other-data" in refused.stderr
        poor = typed(*words, "--other-data")
        assert poor.exit_code == 2
        assert complaint in poor.stderr
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_model_is_named(trained: tuple[Path, Result], data: Path, tmp_path: Path) -> None:
    """An empty folder, a file that was changed, another kind: before any history is read."""
    folder, _ = trained
    (tmp_path / "empty").mkdir()
    shutil.copytree(folder, tmp_path / "changed")
    with (tmp_path / "changed" / MODEL_FILE).open("ab") as file:
        file.write(b"\0")
    out = tmp_path / "report.html"
    for words, complaint in (
        ((str(tmp_path / "empty"),), "can't be read"),
        ((str(tmp_path / "changed"),), "SHA-256"),
        ((str(folder), "--kind", "channel"), "is of kind 'redeem', wanted is 'channel'"),
    ):
        said = typed("evaluate", *words, "--data", str(data), "--out", str(out))
        assert said.exit_code == 2
        assert complaint in said.stderr
        assert "replay" not in said.stderr
        assert not out.exists()


def test_bad_places_and_data_are_named(trained: tuple[Path, Result], tmp_path: Path) -> None:
    """A report that is neither page nor Markdown, and a folder that has no history."""
    folder, _ = trained
    for words, complaint in (
        (("evaluate", str(folder), "--out", str(tmp_path / "report.pdf")), "must end in .html or .md"),
        (("evaluate", str(folder), "--out", str(tmp_path / "r.html"), "--data", str(tmp_path)), ".parquet is missing"),
        (("train", "--out", str(tmp_path / "model"), "--data", str(tmp_path)), ".parquet is missing"),
        (("train", "--out", str(tmp_path / "model"), "--households", "0"), "0 is not in the range"),
        (("train", "tea-leaves", "--out", str(tmp_path / "model")), "'tea-leaves' is not one of"),
    ):
        said = typed(*words)
        assert said.exit_code == 2
        assert complaint in said.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_server_does_not_load_what_training_needs() -> None:
    """The command line starts without scikit-learn, pandas and matplotlib, which production has not installed."""
    code = "import server.cli, sys; print({'sklearn', 'pandas', 'matplotlib', 'onnxruntime'} & set(sys.modules))"
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert said.stdout.strip() == "set()"
