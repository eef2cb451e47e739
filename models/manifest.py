"""A model as files: the ONNX file, the manifest beside it, and rows with the probabilities its trainer's model gave.

Read by the scorer, written by training or by whoever brings a model of their own; nothing here depends on either. The
manifest holds no clock time and no path, so the same data, seed and library versions give the same one, byte for byte.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta

from models.features.base import Kind
from nearcast.errors import ConfigurationError

MODEL_FILE = "model.onnx"
MANIFEST_FILE = "manifest.json"
SAMPLES_FILE = "samples.json"
CARD_FILE = "CARD.md"

#: Every file a model may have, and how many bytes it may have. The models themselves are kilobytes.
MAX_BYTES: Mapping[str, int] = {
    MODEL_FILE: 16 * 1024 * 1024,
    MANIFEST_FILE: 1024 * 1024,
    SAMPLES_FILE: 4 * 1024 * 1024,
    CARD_FILE: 1024 * 1024,
}
#: Fewer rows than this show little of a model.
MIN_SAMPLES = 32

Sha256 = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
Name = Annotated[str, Meta(pattern="^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Probability = Annotated[float, Meta(ge=0, le=1)]
T = TypeVar("T")


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

    first: str = ""
    last: str = ""
    groups: int = 0
    rows: int = 0
    positives: int = 0


class Spread(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a number was spread in training: bucket i holds those in (edges[i - 1], edges[i]], the last the rest."""

    edges: list[float]
    shares: list[Probability]
    mean: float


class Reference(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the training rows looked like, to tell later whether the rows of today still do: see `models.drift`."""

    #: One for each of the model's features, in their order.
    features: list[Spread]
    score: Spread


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is known of one model file. Whoever brings a model of their own has to tell the first five."""

    kind: Kind
    name: Name
    #: Of the ONNX file.
    onnx_sha256: Sha256
    #: The columns it takes, in its order: all that the kind's feature set has, or some.
    features: Annotated[list[str], Meta(min_length=1)]
    #: `FeatureSet.hash_of(features)`.
    features_hash: Sha256

    #: The outcome's share among the training rows; scores stand for it while the model can't give any.
    base_rate: Probability | None = None
    reference: Reference | None = None

    algorithm: str = ""
    seed: int = 0
    #: SHA-256 over the training data's files.
    data_fingerprint: str = ""
    #: How many customers were left out of the data on purpose: not 0 only in tests and trials.
    customers_left_out: int = 0
    train: Window = Window()
    test: Window = Window()
    #: On the test window: "model", and each baseline by name.
    metrics: dict[str, Metrics] = {}
    #: 95 % interval of the model's AUC, and of its gain over the best baseline; customers resampled.
    auc_interval: tuple[float, float] = (0.0, 1.0)
    auc_gain_interval: tuple[float, float] = (-1.0, 1.0)
    libraries: dict[str, str] = {}

    @property
    def version(self) -> str:
        """The model's short name in decisions and logs: equal only if the file is."""
        return f"{self.name}-{self.onnx_sha256[:12]}"


class Samples(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Feature rows, in the order of the manifest's features, and what the trainer's own model gave for each."""

    rows: Annotated[list[list[float]], Meta(min_length=MIN_SAMPLES)]
    probabilities: list[Probability]


@dataclass(frozen=True)
class Files:
    """The files of one model by their names, their sizes checked; `source` names them in errors."""

    source: str
    content: Mapping[str, bytes]

    def need(self, name: str) -> bytes:
        """Raises `ConfigurationError` if there is no such file."""
        if name not in self.content:
            raise ConfigurationError(f"model file {self.source}/{name} can't be read: there is none")
        return self.content[name]

    @property
    def manifest(self) -> Manifest:
        """Raises `ConfigurationError`."""
        return self._decoded(MANIFEST_FILE, Manifest)

    @property
    def samples(self) -> Samples | None:
        """None if there is no such file. Raises `ConfigurationError`."""
        return self._decoded(SAMPLES_FILE, Samples) if SAMPLES_FILE in self.content else None

    def _decoded(self, name: str, kind: type[T]) -> T:
        try:
            return msgspec.json.decode(self.need(name), type=kind)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise ConfigurationError(f"model file {self.source}/{name} is not valid: {error}") from None


def files_of(source: str, content: Mapping[str, bytes]) -> Files:
    """A model's files; others are dropped. Raises `ConfigurationError` for one that is too large."""
    for name, limit in MAX_BYTES.items():
        if len(content.get(name, b"")) > limit:
            raise ConfigurationError(f"model file {source}/{name} is larger than {limit} bytes")
    return Files(source, {name: content[name] for name in MAX_BYTES if name in content})


def read_files(folder: Path) -> Files:
    """The model's files in `folder`. Raises `ConfigurationError` naming the file that can't be read."""
    content = {}
    for name, limit in MAX_BYTES.items():
        path = folder / name
        try:
            with path.open("rb") as file:
                content[name] = file.read(limit + 1)
        except FileNotFoundError as error:
            if name in (MODEL_FILE, MANIFEST_FILE):
                raise ConfigurationError(f"model file {path} can't be read: {error.strerror}") from None
        except OSError as error:
            raise ConfigurationError(f"model file {path} can't be read: {error.strerror}") from None
    return files_of(str(folder), content)


def read(folder: Path) -> Manifest:
    """The manifest in `folder`. Raises `ConfigurationError` naming the file."""
    return read_files(folder).manifest


def write(folder: Path, manifest: Manifest) -> None:
    """Write `manifest` into `folder`, for people to read too."""
    text = msgspec.json.format(msgspec.json.encode(manifest), indent=2)
    (folder / MANIFEST_FILE).write_bytes(text + b"\n")


def write_samples(folder: Path, samples: Samples) -> None:
    """Write `samples` into `folder`."""
    (folder / SAMPLES_FILE).write_bytes(msgspec.json.encode(samples) + b"\n")
