"""From history to labelled feature rows, by replaying it through the serving fold; and a cache of them.

The cache holds the rows of a few customers a file, under a name that tells data, customers, features and code apart:
what was interrupted goes on where it stopped, and nothing stale is ever found. It can be deleted at any time.
"""

import hashlib
import inspect
import os
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

import nearcast
from models.training.dataset import Dataset
from models.training.history import History
from models.training.task import Task
from nearcast.ids import CustomerId

#: Customers a file.
CHUNK = 50
_SIGNAL = "signal "


def extract(
    history: History, task: Task, progress: Callable[[float], None] = lambda _: None, cache: Path | None = None
) -> Dataset:
    """Every row that `task` sees in `history`. `progress` hears the fraction done.

    With `cache`, a folder that is made if missing, what it holds is not computed again.
    """
    folder = None if cache is None else cache / _key(history, task)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    parts = [Dataset.of([], len(task.features.columns))]
    for first in range(0, len(history.households), CHUNK):
        progress(first / len(history.households))
        customers = history.households[first : first + CHUNK]
        path = None if folder is None else folder / f"{first:06}.npz"
        part = None if path is None else _kept(path)
        if part is None:
            part = _rows(history, task, customers)
            if path is not None:
                _keep(path, part)
        parts.append(part)
    progress(1.0)
    return Dataset.joined(parts)


def _rows(history: History, task: Task, customers: Sequence[CustomerId]) -> Dataset:
    examples = [example for customer in customers for example in task.examples(history, customer)]
    return Dataset.of(examples, len(task.features.columns))


def _key(history: History, task: Task) -> str:
    """Of all that the rows depend on: data, customers, features, and the code that replays and asks."""
    total = hashlib.sha256()
    for text in (history.fingerprint, task.features.hash, str(CHUNK), *history.households):
        total.update(f"{text}\n".encode())
    training, package = Path(__file__).parent, Path(nearcast.__file__).parent
    files = [*package.glob("*.py"), *training.parent.glob("features/*.py")]
    files += [training / f"{name}.py" for name in ("dataset", "extract", "history")]
    files += [Path(inspect.getfile(type(task)))]
    for file in sorted(files):
        total.update(file.read_bytes())
    return f"{task.features.kind}-{total.hexdigest()[:24]}"


def _kept(path: Path) -> Dataset | None:
    """None if there is no such file, or none that can be read: a full disk may have left half of one."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as held:
            return Dataset(
                rows=held["rows"],
                outcome=held["outcome"],
                at_ms=held["at_ms"],
                group=held["group"],
                customer=held["customer"],
                signals={name.removeprefix(_SIGNAL): held[name] for name in held.files if name.startswith(_SIGNAL)},
                practice_rows=held["practice_rows"],
                practice_outcome=held["practice_outcome"],
            )
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _keep(path: Path, part: Dataset) -> None:
    arrays = {
        "rows": part.rows,
        "outcome": part.outcome,
        "at_ms": part.at_ms,
        "group": part.group,
        "customer": part.customer,
        "practice_rows": part.practice_rows,
        "practice_outcome": part.practice_outcome,
        **{f"{_SIGNAL}{name}": values for name, values in part.signals.items()},
    }
    # Under its name only when it is whole: training may be stopped at any moment.
    handle, scratch = tempfile.mkstemp(dir=path.parent, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
        Path(scratch).replace(path)
    except BaseException:
        Path(scratch).unlink(missing_ok=True)
        raise
