"""Training: the exported file is the model, the figures are honest, and a second run gives the same bytes."""

from pathlib import Path

import numpy as np
import onnxruntime as ort
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
from models.training.task import Classifier
from models.training.train import Report, run
from nearcast.errors import ConfigurationError
from tests.models.conftest import HOUSEHOLDS

TEST_FROM_MS = 1_502_755_200_000  # 2017-08-15


def halves(dataset: Dataset) -> tuple[Dataset, Dataset]:
    return dataset.where(dataset.at_ms < TEST_FROM_MS), dataset.where(dataset.at_ms >= TEST_FROM_MS)


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
    prefix, _, penalty = trained.manifest.algorithm.rpartition("C = ")
    assert prefix.startswith("logistic")
    again = make_pipeline(StandardScaler(), LogisticRegression(C=float(penalty), max_iter=1_000))
    again.fit(train.rows, train.outcome)
    scores = Scorer.load(Path(trained.folder)).score(later.rows.tolist())
    np.testing.assert_allclose(scores, again.predict_proba(later.rows)[:, 1], atol=1e-5)


def test_a_difference_in_probability_fails_the_gate() -> None:
    """More than 1e-5, or not a number."""
    reference = np.array([0.1, 0.2, 0.3])
    assert check_parity(reference, reference + 9e-6) < 1e-5
    for wrong in (np.array([0.1, 0.2, 0.30002]), np.array([0.1, np.nan, 0.3])):
        with pytest.raises(ParityError, match="differ by"):
            check_parity(reference, wrong)


def test_another_ranking_fails_the_gate() -> None:
    """Even where every probability is near enough; rows that tie may swap."""
    reference = np.array([0.1, 0.100004, 0.3])
    with pytest.raises(ParityError, match="ranks"):
        check_parity(reference, np.array([0.100005, 0.100001, 0.3]))
    check_parity(np.array([0.1, 0.1 + 1e-8]), np.array([0.1 + 1e-8, 0.1]))


def test_a_second_run_writes_the_same_bytes(trained: Report, tmp_path: Path) -> None:
    """Model, manifest and card depend on data, seed and versions only."""
    again = run(tmp_path / "again", households=HOUSEHOLDS)
    for name in (MODEL_FILE, MANIFEST_FILE, CARD_FILE):
        assert (tmp_path / "again" / name).read_bytes() == (Path(trained.folder) / name).read_bytes()
    assert again.version == trained.version


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
    with pytest.raises(ConfigurationError, match="too little"):
        run(tmp_path / "out", households=2)
    assert not (tmp_path / "out").exists()
