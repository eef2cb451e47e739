"""`nearcast evaluate`: a trained model and a history in, a report for people out."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from models.features.base import Kind
from models.scorer import Scorer
from models.training.extract import extract
from models.training.history import load, package_folder
from models.training.report_content import content_of
from models.training.report_evaluation import Evaluation, evaluate
from models.training.report_pages import check_place, write
from models.training.train import TASKS
from nearcast.errors import ConfigurationError

STAGES = ("read", "replay", "score", "refit", "effects", "write")


def report(
    folder: Path,
    out: Path,
    seed: int = 7,
    progress: Callable[[str, float], None] = lambda _stage, _fraction: None,
    *,
    kind: Kind | None = None,
    households: int | None = None,
    data: Path | None = None,
    cache: Path | None = None,
    other_data: bool = False,
) -> Evaluation:
    """Judge the model in `folder` and write what was found to `out`, an .html or .md file.

    `progress` hears each of `STAGES` and the fraction of it done, 0..1. `kind` refuses a model of another kind.
    `households`, `data` and `cache` are as in `models.training.train.run`; a model trained on data of another
    fingerprint is refused unless `other_data` says that it's meant.

    Raises `ConfigurationError` if model, data or place are not fit for it; nothing is written then.
    """
    check_place(out)
    scorer = Scorer.load(folder, kind)
    manifest = scorer.manifest
    if manifest.kind not in TASKS:
        raise ConfigurationError(f"the model in {folder} is of kind {manifest.kind!r}, for which no history is known")
    progress("read", 0.0)
    history = load(data or package_folder(), households, seed)
    progress("read", 1.0)
    if not other_data and manifest.data_fingerprint not in ("", history.fingerprint):
        raise ConfigurationError(
            f"the model in {folder} was trained on data with the fingerprint {manifest.data_fingerprint[:12]}, these "
            f"have {history.fingerprint[:12]}; --other-data judges it all the same"
        )
    task = TASKS[manifest.kind]
    dataset = extract(history, task, partial(progress, "replay"), cache)
    found = evaluate(scorer, task, dataset, history.fingerprint, history.households_left_out, seed, progress)
    progress("write", 0.0)
    write(content_of(found, task.words), out)
    progress("write", 1.0)
    return found


def summary(found: Evaluation) -> str:
    """The figures that matter, one line each, for a terminal."""
    lines = [f"{found.manifest.version} on {found.test.rows:,} rows from {found.test.first} to {found.test.last}"]
    lines += [f"note: {caution}" for caution in found.cautions]
    lines.append(f"{'':20}{'AUC':>8}{'avg.prec.':>11}{'log-loss':>10}{'ECE':>7}")
    for name, m in found.metrics.items():
        lines.append(f"{name:20}{m.auc:8.3f}{m.average_precision:11.3f}{m.log_loss:10.3f}{m.ece:7.3f}")
    return "\n".join(lines)
