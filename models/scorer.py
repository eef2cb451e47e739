"""The scorer: feature rows in, probabilities out, one ONNX call for a whole batch.

The only importer of onnxruntime. Loading reads two files; scoring is pure. One thread and no memory arena: the model
takes microseconds, so a thread pool that spins between calls would cost the event loop more than it could give.

A row's score does not depend on the rows beside it, to the last bit, so that a decision does not depend on how the log
was cut into batches. A scorer is immutable; a new model is a new scorer.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort

from models.features.base import Kind
from models.features.sets import SETS
from models.manifest import MODEL_FILE, Manifest, read
from nearcast.errors import ConfigurationError

#: Batches are filled up to a multiple of this many rows. onnxruntime multiplies a single row with another kernel than
#: several, which rounds differently; a whole block never takes that path, nor one for left-over rows.
_BLOCK_ROWS = 16


class Scorer:
    """A loaded model: a probability per row of its kind's features."""

    def __init__(self, session: ort.InferenceSession, manifest: Manifest) -> None:
        self.manifest = manifest
        self.version = manifest.version
        self._width = len(manifest.features)
        self._session = session
        self._input = session.get_inputs()[0].name
        self._output = session.get_outputs()[1].name

    @classmethod
    def load(cls, folder: Path, kind: Kind = "redeem") -> "Scorer":
        """The model in `folder`.

        Raises `ConfigurationError` if a file is missing, is not the one its manifest speaks of, is of another kind, or
        was trained on other features than this code computes.
        """
        manifest = read(folder)
        if manifest.kind != kind:
            raise ConfigurationError(f"the model in {folder} is of kind {manifest.kind!r}, wanted is {kind!r}")
        path = folder / MODEL_FILE
        try:
            content = path.read_bytes()
        except OSError as error:
            raise ConfigurationError(f"model file {path} can't be read: {error.strerror}") from None
        found = hashlib.sha256(content).hexdigest()
        if found != manifest.onnx_sha256:
            raise ConfigurationError(
                f"model file {path} has SHA-256 {found}, its manifest says {manifest.onnx_sha256}: not the same model"
            )
        if manifest.features_hash != SETS[kind].hash:
            raise ConfigurationError(
                f"model {path} was trained on other features: {_difference(manifest)}; train again"
            )
        return cls(_open(content, path, len(manifest.features)), manifest)

    def score(self, rows: Sequence[Sequence[float]]) -> list[float]:
        """Probabilities, 0..1, one per row and in the same order."""
        if not rows:
            return []
        given = np.asarray(rows, dtype=np.float32)
        if given.shape[1:] != (self._width,):
            raise ValueError(f"a row has {self._width} features, these have the shape {given.shape}")
        batch = np.zeros((-(-len(given) // _BLOCK_ROWS) * _BLOCK_ROWS, self._width), dtype=np.float32)
        batch[: len(given)] = given
        (probabilities,) = self._session.run([self._output], {self._input: batch})
        scores: list[float] = probabilities[: len(given), 1].tolist()
        return scores


def _open(content: bytes, path: Path, width: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.enable_cpu_mem_arena = False
    try:
        session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # noqa: BLE001  onnxruntime has no public base class for what it raises
        raise ConfigurationError(f"model file {path} is not an ONNX model that can be run: {error}") from None
    inputs, outputs = session.get_inputs(), session.get_outputs()
    if len(inputs) != 1 or inputs[0].shape[1:] != [width] or len(outputs) != 2 or len(outputs[1].shape) != 2:
        raise ConfigurationError(f"model file {path} must take [rows, {width}] and give labels, probabilities")
    return session


def _difference(manifest: Manifest) -> str:
    columns = set(SETS[manifest.kind].columns)
    missing, unknown = sorted(columns - set(manifest.features)), sorted(set(manifest.features) - columns)
    if not missing and not unknown:
        return "the same names in another order or with another meaning"
    return f"it lacks {', '.join(missing) or 'nothing'}, and has {', '.join(unknown) or 'nothing'} that is unknown here"
