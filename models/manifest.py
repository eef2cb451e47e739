"""The manifest beside a model file: what the model expects, where it came from, how good it was.

Read by the scorer, written by training; nothing here depends on either. It holds no clock time and no path, so the
same data, seed and library versions give the same manifest, byte for byte.
"""

from pathlib import Path

import msgspec

from models.features.base import Kind
from nearcast.errors import ConfigurationError

MODEL_FILE = "model.onnx"
MANIFEST_FILE = "manifest.json"
CARD_FILE = "CARD.md"


class Metrics(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How well probabilities fit outcomes. `auc` is 0.5 for a constant; lower `log_loss` and `brier` are better."""

    auc: float
    #: The same over pairs of rows of one group only (a campaign, a week): no credit for telling groups apart.
    auc_within: float
    #: Area under the precision-recall curve, as a sum over its steps; the rate for a constant.
    average_precision: float
    #: Expected calibration error over ten bins of equal width: how far mean prediction and rate are apart, by rows.
    ece: float
    log_loss: float
    brier: float
    #: Rate among the tenth scored highest, over that of all.
    lift_top_tenth: float
    mean_predicted: float
    rate: float


class Window(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When a set of rows was seen, by ISO dates, both included; how many groups (campaigns, weeks) and rows there are,
    and how many of those had the outcome.
    """

    first: str
    last: str
    groups: int
    rows: int
    positives: int


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All that is known of one model file."""

    kind: Kind
    name: str
    algorithm: str
    seed: int
    #: SHA-256 of the ONNX file.
    onnx_sha256: str
    features: list[str]
    features_hash: str
    #: SHA-256 over the training data's files.
    data_fingerprint: str
    #: How many customers were left out of the data on purpose: not 0 only in tests and trials.
    customers_left_out: int
    train: Window
    test: Window
    #: On the test window: "model", and each baseline by name.
    metrics: dict[str, Metrics]
    #: 95 % interval of the model's AUC, and of its gain over the best baseline; customers resampled.
    auc_interval: tuple[float, float]
    auc_gain_interval: tuple[float, float]
    libraries: dict[str, str]

    @property
    def version(self) -> str:
        """The model's short name in decisions and logs: equal only if the file is."""
        return f"{self.name}-{self.onnx_sha256[:12]}"


def read(folder: Path) -> Manifest:
    """The manifest in `folder`. Raises `ConfigurationError` naming the file."""
    path = folder / MANIFEST_FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=Manifest)
    except OSError as error:
        raise ConfigurationError(f"model manifest {path} can't be read: {error.strerror}") from None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"model manifest {path} is not valid: {error}") from None


def write(folder: Path, manifest: Manifest) -> None:
    """Write `manifest` into `folder`, for people to read too."""
    text = msgspec.json.format(msgspec.json.encode(manifest), indent=2)
    (folder / MANIFEST_FILE).write_bytes(text + b"\n")
