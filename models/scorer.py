"""The scorer: feature rows in, probabilities out, one ONNX call for a whole batch.

The only importer of onnxruntime. One thread and no memory arena: a model takes microseconds, so a thread pool that
spins between calls would cost the event loop more than it could give.

A row's score does not depend on the rows beside it, to the last bit, so that a decision does not depend on how the log
was cut into batches. A scorer stays the model it is; a new model is a new scorer. It says so when a model fails: what
serves instead is `models.fallback`'s business. A scorer is for one thread at a time.
"""

import hashlib
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from models.features.base import FeatureSet, Kind
from models.features.sets import SETS
from models.manifest import MODEL_FILE, SAMPLES_FILE, Files, Manifest, Samples, read_files
from models.watchdog import Watchdog
from nearcast.errors import ConfigurationError, NearcastError

#: CPU time that one call may take, and so the event loop may be held up by it.
BUDGET_S = 0.05
#: A loaded model has to score this many rows within the budget.
_TIMED_ROWS = 64
#: Stored probabilities, and the model's for the same rows, may differ by this much.
MAX_DIFFERENCE = 1e-5
#: ONNX scores are 32-bit: rows nearer than this are ties, and may come in any order.
TIE = 1e-6

#: Batches are filled up to a multiple of this many rows. onnxruntime multiplies a single row with another kernel than
#: several, which rounds differently; a whole block never takes that path, nor one for left-over rows. Other models'
#: kernels have other habits; so each is tried when it is loaded (`_scores_rows_alone`).
_BLOCK_ROWS = 16
_DTYPES: dict[str, type[np.float32 | np.float64]] = {"tensor(float)": np.float32, "tensor(double)": np.float64}
#: No feature comes near it.
_LARGE = 1e6
#: Where a model's other files would have to be: nowhere. onnxruntime would read them from wherever the process stands.
_NO_FOLDER = "/dev/null/none"
_SILENT = 4
_LINE_BYTES = 64
_WATCHDOG = Watchdog()

Rows = Sequence[Sequence[float]] | NDArray[np.float32]


class ScoringError(NearcastError):
    """The model failed on rows that it should be able to score."""


class TooSlow(ScoringError):
    """It took longer than its budget, and was stopped."""


class Scorer:
    """A loaded model: a probability per row of its kind's features."""

    def __init__(self, session: ort.InferenceSession, manifest: Manifest) -> None:
        self.manifest = manifest
        self.version = manifest.version
        columns = SETS[manifest.kind].columns
        self._width = len(columns)
        #: Places of the model's features among those of its kind; None if it takes them all as they are.
        self._chosen = None
        if tuple(manifest.features) != columns:
            self._chosen = np.array([columns.index(name) for name in manifest.features])
        #: Every how many rows of a batch one is used.
        self._step = 1
        self._session = session
        self._options = _run_options()
        (taken,) = session.get_inputs()
        self._input = taken.name
        self._dtype = _DTYPES[taken.type]
        #: Where batches are put together.
        self._room = _zeros(0, len(manifest.features), self._dtype)
        self._output = next(output.name for output in session.get_outputs() if output.type in _DTYPES)

    @classmethod
    def load(cls, folder: Path, kind: Kind | None = "redeem", *, budget_s: float = BUDGET_S) -> "Scorer":
        """The model in `folder`; see `of`."""
        return cls.of(read_files(folder), kind, budget_s=budget_s)

    @classmethod
    def of(cls, files: Files, kind: Kind | None, *, budget_s: float = BUDGET_S) -> "Scorer":
        """The model in these files, of this kind or (None) of any, tried on the rows that came with it and on others.

        Raises `ConfigurationError`, naming the file and what is wrong with it.
        """
        manifest = files.manifest
        if kind is not None and manifest.kind != kind:
            raise ConfigurationError(f"the model in {files.source} is of kind {manifest.kind!r}, wanted is {kind!r}")
        content = files.need(MODEL_FILE)
        path = f"{files.source}/{MODEL_FILE}"
        found = hashlib.sha256(content).hexdigest()
        if found != manifest.onnx_sha256:
            raise ConfigurationError(
                f"model file {path} has SHA-256 {found}, its manifest says {manifest.onnx_sha256}: not the same model"
            )
        _check_features(manifest, path)
        _check_reference(manifest, path)
        samples = files.samples
        scorer = cls(_open(content, path, len(manifest.features)), manifest)
        try:
            scorer._try(budget_s)
            if samples is not None:
                scorer._compare(samples, f"{files.source}/{SAMPLES_FILE}")
        except ScoringError as error:
            raise ConfigurationError(f"model file {path} can't be used: {error}") from None
        return scorer

    def score(self, rows: Rows, within_s: float | None = None) -> list[float]:
        """One number per row and in the same order: a probability, if the model is sound.

        Raises `ScoringError` if the model fails or, with `within_s`, takes more CPU time than that.
        """
        if len(rows) == 0:
            return []
        return self.score_chosen(self.choose(rows), within_s)

    def choose(self, rows: Rows) -> NDArray[np.float32]:
        """Of rows of the kind's features the columns that this model takes."""
        given = np.asarray(rows, dtype=np.float32)
        if given.shape[1:] != (self._width,):
            raise ValueError(f"a row has {self._width} features, these have the shape {given.shape}")
        return given if self._chosen is None else given[:, self._chosen]

    def score_chosen(self, rows: NDArray[np.float32], within_s: float | None = None) -> list[float]:
        """As `score`, of the model's own columns; of one row or more."""
        count, width = rows.shape
        end = count * self._step
        filled = -(-end // _BLOCK_ROWS) * _BLOCK_ROWS
        if filled > len(self._room):
            self._room = _zeros(2 * filled, width, self._dtype)
        batch = self._room[:filled]
        batch[:] = 0
        batch[: end : self._step] = rows
        found = self._run(batch, within_s)
        if found.ndim == 2 and found.shape[1] in (1, 2):
            found = found[:, -1]
        if found.shape != (len(batch),):
            raise ScoringError(f"for {len(batch)} rows it gives the shape {found.shape}")
        scores: list[float] = found[: end : self._step].tolist()
        return scores

    def _run(self, batch: NDArray[np.float32] | NDArray[np.float64], within_s: float | None) -> NDArray[np.float64]:
        if self._options.terminate:
            self._options = _run_options()
        options = self._options
        used_s = _WATCHDOG.begin(options, within_s) if within_s is not None else None
        try:
            (found,) = self._session.run([self._output], {self._input: batch}, options)
        except Exception as error:  # noqa: BLE001  onnxruntime has no public base class for what it raises
            if options.terminate:
                raise TooSlow(f"{len(batch)} rows take more than {within_s} s") from None
            raise ScoringError(f"it fails on {len(batch)} rows: {error}") from None
        finally:
            _WATCHDOG.end()
        if within_s is not None and used_s is not None and used_s() > within_s:
            raise TooSlow(f"{len(batch)} rows take more than {within_s} s")
        return np.asarray(found)

    def _try(self, budget_s: float) -> None:
        """Score what a model may meet at the edges, twice: the first call of a session sets things up."""
        width = len(self.manifest.features)
        edges = np.zeros((_TIMED_ROWS, width), dtype=np.float32)
        edges[1] = _LARGE
        edges[2] = -_LARGE
        for row in range(width):
            edges[(3 + row) % _TIMED_ROWS, row] = _LARGE
        self.score_chosen(edges, 4 * budget_s)
        if not self._scores_rows_alone(budget_s):
            # Some kernels round by where in a batch a row begins. Then each begins at a block, which costs more.
            self._step = _BLOCK_ROWS
            if not self._scores_rows_alone(budget_s):
                raise ScoringError("a row's score depends on the rows beside it")
        _check_range(self.score_chosen(edges, budget_s), "for zeros and large numbers it")

    def _scores_rows_alone(self, budget_s: float) -> bool:
        """Whether rows get the same scores, to the last bit, wherever in a batch of whatever size they stand."""
        rows = np.random.default_rng(0).normal(0, 1, (_TIMED_ROWS, len(self.manifest.features))).astype(np.float32)
        scores = np.array(self.score_chosen(rows, 4 * budget_s))
        moved = (np.roll(self.score_chosen(np.roll(rows, by, 0), 4 * budget_s), -by) for by in range(1, _BLOCK_ROWS))
        cut = (np.array(self.score_chosen(rows[:size], 4 * budget_s)) for size in (1, 15, 17, 48))
        return all(np.array_equal(scores[: len(other)], other, equal_nan=True) for other in (*moved, *cut))

    def _compare(self, samples: Samples, path: str) -> None:
        width = len(self.manifest.features)
        if len(samples.probabilities) != len(samples.rows) or {*map(len, samples.rows)} != {width}:
            raise ConfigurationError(f"model file {path} must have {width} features and one probability for each row")
        scores = np.array(self.score_chosen(np.asarray(samples.rows, dtype=np.float32)))
        _check_range(scores.tolist(), "for the stored rows it")
        compare(np.array(samples.probabilities), scores)


def compare(reference: NDArray[np.float64], scores: NDArray[np.float64]) -> float:
    """The largest difference between two models' probabilities on the same rows.

    Raises `ScoringError` if it exceeds `MAX_DIFFERENCE`, or if the two rank any rows differently that are not ties.
    """
    difference = float(np.abs(reference - scores).max())
    if not difference <= MAX_DIFFERENCE:
        raise ScoringError(f"it differs by {difference:.2e} from the trainer's model; {MAX_DIFFERENCE:.0e} is allowed")
    ranked = reference[np.argsort(scores, kind="stable")]
    fall = float((np.maximum.accumulate(ranked) - ranked).max())
    if fall > TIE:
        raise ScoringError(f"it ranks rows otherwise than the trainer's model whose probabilities are {fall:.2e} apart")
    return difference


def _check_range(scores: Sequence[float], where: str) -> None:
    for score in scores:
        if not 0 <= score <= 1:
            raise ScoringError(f"{where} gives {score}, which is no probability")


def _check_features(manifest: Manifest, path: str) -> None:
    known = SETS.get(manifest.kind)
    if known is None:
        raise ConfigurationError(f"model {path} is of kind {manifest.kind!r}, for which nothing is computed here")
    if len({*manifest.features}) < len(manifest.features):
        raise ConfigurationError(f"model {path} takes a feature twice")
    if manifest.features_hash != known.hash_of(manifest.features) or not {*manifest.features} <= {*known.columns}:
        raise ConfigurationError(f"model {path} was trained on other features: {_difference(manifest, known)}")


def _check_reference(manifest: Manifest, path: str) -> None:
    """What drift is measured by, every minute: it must not fail there."""
    reference = manifest.reference
    if reference is None:
        return
    if len(reference.features) != len(manifest.features):
        raise ConfigurationError(
            f"model {path} has a reference for {len(reference.features)} features, and takes {len(manifest.features)}"
        )
    for spread in (*reference.features, reference.score):
        rising = all(low < high for low, high in pairwise(spread.edges))
        if not rising or len(spread.shares) != len(spread.edges) + 1:
            raise ConfigurationError(f"model {path}: a reference needs rising edges, and one share more than edges")


def _difference(manifest: Manifest, known: FeatureSet) -> str:
    unknown = [name for name in manifest.features if name not in known.columns]
    if unknown:
        return f"{', '.join(unknown)} can't be computed here; known are {', '.join(known.columns)}"
    return (
        "the same names in another order or with another meaning; of these in this order, "
        f"the hash is {known.hash_of(manifest.features)}"
    )


def _zeros(rows: int, width: int, dtype: type[np.float32 | np.float64]) -> NDArray[Any]:
    """An array that begins at a cache line: where rows begin, some kernels round by."""
    size = rows * width * np.dtype(dtype).itemsize
    room = np.zeros(size + _LINE_BYTES, dtype=np.uint8)
    skipped = -room.__array_interface__["data"][0] % _LINE_BYTES
    return room[skipped : skipped + size].view(dtype).reshape(rows, width)


def _run_options() -> ort.RunOptions:
    options = ort.RunOptions()
    options.log_severity_level = _SILENT
    return options


def _open(content: bytes, path: str, width: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", _NO_FOLDER)
    options.enable_cpu_mem_arena = False
    options.log_severity_level = _SILENT
    try:
        session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # noqa: BLE001  onnxruntime has no public base class for what it raises
        if "external data" in str(error).lower():
            raise ConfigurationError(f"model file {path} has weights in other files; save it as one file") from None
        raise ConfigurationError(f"model file {path} is not an ONNX model that can be run: {error}") from None
    if fault := _schema_fault(session, width):
        raise ConfigurationError(f"model file {path} {fault}")
    return session


def _schema_fault(session: ort.InferenceSession, width: int) -> str:
    """What is wrong with what a model takes and gives; empty: nothing."""
    inputs, outputs = session.get_inputs(), session.get_outputs()
    if len(inputs) != 1 or inputs[0].type not in _DTYPES:
        return f"must take one tensor of floats or doubles, not {[(each.name, each.type) for each in inputs]}"
    shape = inputs[0].shape
    if len(shape) != 2 or isinstance(shape[0], int) or (isinstance(shape[1], int) and shape[1] != width):
        return f"must take [any number of rows, {width}], not {shape}"
    given = [each for each in outputs if each.type in _DTYPES]
    if len(given) != 1:
        return (
            "must give probabilities as one tensor of floats or doubles (skl2onnx: zipmap off), "
            f"not {[(each.name, each.type) for each in outputs]}"
        )
    return ""
