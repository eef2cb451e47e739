"""From a fitted scikit-learn model to ONNX, and the gate that an export must pass.

The gate runs the file through the serving scorer, so what is compared is what will serve.
"""

import numpy as np
from numpy.typing import NDArray
from skl2onnx import to_onnx

from models.scorer import ScoringError, compare
from models.training.task import Classifier
from nearcast.errors import NearcastError

_OPSET = {"": 18, "ai.onnx.ml": 3}


class ParityError(NearcastError):
    """The exported file does not score as the model it was made from."""


def onnx_bytes(model: Classifier, name: str, width: int) -> bytes:
    """The model as an ONNX file: float32 [rows, `width`] in, labels and float32 [rows, 2] out.

    Deterministic: the graph's name, which skl2onnx would otherwise draw at random, is given.
    """
    sample = np.zeros((1, width), dtype=np.float32)
    exported = to_onnx(model, sample, name=name, options={id(model): {"zipmap": False}}, target_opset=_OPSET)
    content: bytes = exported.SerializeToString()
    return content


def check_parity(reference: NDArray[np.float64], exported: NDArray[np.float64]) -> float:
    """The largest difference between the two models' probabilities on the same rows.

    Raises `ParityError` if a server would refuse the file for it.
    """
    try:
        return compare(reference, exported)
    except ScoringError as error:
        raise ParityError(f"the ONNX file is not the model that was trained: {error}") from None
