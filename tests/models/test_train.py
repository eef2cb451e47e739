"""Training: the exported file is the model, the figures are honest, and a second run gives the same bytes."""

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pandas as pd
import pytest
from sklearn.ensemble import GradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from models.features.redeem import REDEEM
from models.manifest import CARD_FILE, MANIFEST_FILE, MODEL_FILE
from models.scorer import Scorer
from models.training.dataset import Dataset
from models.training.evaluate import measure
from models.training.export import ParityError, check_parity, onnx_bytes
from models.training.extract import CHUNK
from models.training.history import package_folder
from models.training.task import Classifier
from models.training.train import Report, run
from nearcast.errors import ConfigurationError
from tests.models.conftest import HOUSEHOLDS

TEST_FROM_MS = 1_502_755_200_000  # 2017-08-15


def halves(dataset: Dataset) -> tuple[Dataset, Dataset]:
    return dataset.where(dataset.at_ms < TEST_FROM_MS), dataset.where(dataset.at_ms >= TEST_FROM_MS)


def _penalty(trained: Report) -> float:
    prefix, _, penalty = trained.manifest.algorithm.rpartition("C = ")
    assert prefix.startswith("logistic")
    return float(penalty)


@pytest.mark.parametrize(
    "model",
    [
        make_pipeline(StandardScaler(), LogisticRegression()),
        GradientBoostingClassifier(n_estimators=20, max_depth=2, random_state=1),
    ],
    ids=["logistic", "boosting"],
)
def test_an_export_scores_as_scikit_learn_does(dataset: Dataset, model: Classifier) -> None:
    """Held-out rows through the ONNX file and through scikit-learn: the same probabilities, in the same order."""
    train, later = halves(dataset)
    model.fit(train.rows, train.outcome)
    reference = model.predict_proba(later.rows)[:, 1]
    session = ort.InferenceSession(onnx_bytes(model, "redeem", len(REDEEM.columns)), providers=["CPUExecutionProvider"])
    _, scores = session.run(None, {session.get_inputs()[0].name: later.rows.astype(np.float32)})
    assert np.abs(scores[:, 1] - reference).max() <= 1e-5
    assert check_parity(reference, scores[:, 1].astype(np.float64)) <= 1e-5
    clear = np.flatnonzero(np.diff(np.sort(reference)) > 1e-6)
    order = np.argsort(scores[:, 1], kind="stable")
    # Wherever the reference steps up clearly, the same rows stand below the step in both orders.
    expected = np.argsort(reference, kind="stable")
    assert all(set(order[: cut + 1]) == set(expected[: cut + 1]) for cut in clear)


def test_the_written_model_is_the_algorithm_its_manifest_names(trained: Report, dataset: Dataset) -> None:
    """Fitting that algorithm anew, by scikit-learn alone, gives the written file's scores on held-out rows."""
    train, later = halves(dataset)
    again = make_pipeline(StandardScaler(), LogisticRegression(C=_penalty(trained), max_iter=1_000))
    again.fit(*train.lessons())
    scores = Scorer.load(Path(trained.folder)).score(later.rows.tolist())
    np.testing.assert_allclose(scores, again.predict_proba(later.rows)[:, 1], atol=1e-5)


def test_the_written_model_puts_the_same_five_first(trained: Report, dataset: Dataset) -> None:
    """Of every campaign's held-out rows, the five that scikit-learn scores highest, in its order."""
    train, later = halves(dataset)
    again = make_pipeline(StandardScaler(), LogisticRegression(C=_penalty(trained), max_iter=1_000))
    again.fit(*train.lessons())
    reference = again.predict_proba(later.rows)[:, 1]
    scores = np.array(Scorer.load(Path(trained.folder)).score(later.rows.tolist()))
    compared = 0
    for group in np.unique(later.group):
        mine = np.flatnonzero(later.group == group)
        ranked = mine[np.argsort(-reference[mine], kind="stable")]
        if len(ranked) > 5 and np.diff(-reference[ranked[:6]]).min() > 1e-6:
            assert mine[np.argsort(-scores[mine], kind="stable")][:5].tolist() == ranked[:5].tolist()
            compared += 1
    assert compared >= 5


def test_a_difference_in_probability_fails_the_gate() -> None:
    """More than 1e-5, or not a number."""
    reference = np.array([0.1, 0.2, 0.3])
    assert check_parity(reference, reference + 9e-6) < 1e-5
    for wrong in (np.array([0.1, 0.2, 0.30002]), np.array([0.1, np.nan, 0.3])):
        with pytest.raises(ParityError, match="differs by"):
            check_parity(reference, wrong)


def test_another_ranking_fails_the_gate() -> None:
    """Even where every probability is near enough; rows that tie may swap."""
    reference = np.array([0.1, 0.100004, 0.3])
    with pytest.raises(ParityError, match="ranks"):
        check_parity(reference, np.array([0.100005, 0.100001, 0.3]))
    check_parity(np.array([0.1, 0.1 + 1e-8]), np.array([0.1 + 1e-8, 0.1]))


def test_training_and_test_do_not_overlap_in_time(trained: Report) -> None:
    """Every training campaign starts before 2017-08-15, every test campaign after; none before the history does."""
    manifest = trained.manifest
    assert "2017-01-01" <= manifest.train.first <= manifest.train.last < "2017-08-15"
    assert manifest.test.first >= "2017-08-15"
    assert manifest.customers_left_out > 0
    assert "customers were left out" in trained.card


def test_the_report_compares_with_baselines(trained: Report) -> None:
    """The model beats knowing nothing and knowing one thing, even on a part of the data; all figures are shown."""
    metrics = trained.manifest.metrics
    assert list(metrics) == ["model", "prior", "redeemed before", "coupon count", "coupon share"]
    model = metrics.pop("model")
    assert metrics["prior"].auc == 0.5
    assert metrics["prior"].lift_top_tenth == pytest.approx(1.0)
    assert all(model.auc > other.auc and model.log_loss < other.log_loss for other in metrics.values())
    assert all(name in trained.summary() and name in trained.card for name in metrics)


def test_the_figures_are_by_the_book(dataset: Dataset) -> None:
    """AUC by counting pairs, log-loss and Brier by their formulas, lift by sorting."""
    _, later = halves(dataset)
    guess = np.clip(np.random.default_rng(3).random(len(later.outcome)) * 0.5 + later.outcome * 0.3, 0.01, 0.99)
    metrics = measure(later, guess)
    yes, no = guess[later.outcome], guess[~later.outcome]
    assert metrics.auc == pytest.approx((yes[:, None] > no[None, :]).mean())
    same = later.group[later.outcome][:, None] == later.group[~later.outcome][None, :]
    assert metrics.auc_within == pytest.approx((yes[:, None] > no[None, :])[same].mean())
    assert metrics.log_loss == pytest.approx(-np.log(np.where(later.outcome, guess, 1 - guess)).mean())
    assert metrics.brier == pytest.approx(((guess - later.outcome) ** 2).mean())
    top = np.sort(np.argsort(-guess)[: len(guess) // 10])
    assert metrics.lift_top_tenth == pytest.approx(later.outcome[top].mean() / later.outcome.mean())


@pytest.mark.usefixtures("trained")
def test_progress_is_told(heard: list[tuple[str, float]]) -> None:
    """Stages in order, each from its start to its end."""
    assert list(dict.fromkeys(stage for stage, _ in heard)) == ["read", "replay", "fit", "export"]
    for stage in ("read", "replay", "fit", "export"):
        fractions = [fraction for name, fraction in heard if name == stage]
        assert fractions == sorted(fractions)
        assert (fractions[0], fractions[-1]) == (0.0, 1.0)


def test_too_little_data_writes_nothing(tmp_path: Path) -> None:
    """Two households can't train a model: a clear error, and no half-made folder."""
    with pytest.raises(ConfigurationError, match=r"too little training data from .*: \d+ rows, 0 of them with"):
        run(tmp_path / "out", households=2)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("redeemed", [False, True], ids=["nobody redeems", "all redeem"])
def test_a_history_with_one_outcome_trains_nothing(redeemed: bool, tmp_path: Path) -> None:
    """A window in which nothing differs teaches nothing: the error names it, and says how many rows it has."""
    sent = pd.read_parquet(package_folder() / "campaigns.parquet")
    starts = pd.read_parquet(package_folder() / "campaign_descriptions.parquet").set_index("campaign_id")["start_date"]
    every = sent.assign(coupon_upc=1, redemption_date=sent["campaign_id"].map(starts))
    data = tmp_path / "data"
    data.mkdir()
    for path in package_folder().glob("*.parquet"):
        (data / path.name).symlink_to(path)
    (data / "coupon_redemptions.parquet").unlink()
    (every if redeemed else every[every["redemption_date"] >= "2017-12-01"]).to_parquet(
        data / "coupon_redemptions.parquet"
    )
    with pytest.raises(ConfigurationError, match=r"too little training data from before 2017-06-15: \d+ rows, \d+ of"):
        run(tmp_path / "out", households=40, data=data)
    assert not (tmp_path / "out").exists()


def test_an_interrupted_training_ends_as_if_it_had_not_been(trained: Report, tmp_path: Path) -> None:
    """With a cache, what was extracted is not extracted again, and the files are the same to the byte."""
    stops: list[float] = []

    def stop(stage: str, fraction: float) -> None:
        if stage == "replay" and fraction > 0.3:
            stops.append(fraction)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "out", progress=stop, households=HOUSEHOLDS, cache=tmp_path / "cache")
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.npz")}
    assert len(kept) == round(stops[0] * HOUSEHOLDS / CHUNK)
    run(tmp_path / "out", households=HOUSEHOLDS, cache=tmp_path / "cache")
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    for name in (MODEL_FILE, MANIFEST_FILE, CARD_FILE):
        assert (tmp_path / "out" / name).read_bytes() == (Path(trained.folder) / name).read_bytes()
