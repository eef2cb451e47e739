"""The decision log as a Parquet file: a row for each thing that a decision could have done, "nothing" included.

`nearcast export decisions` writes it, `nearcast evaluate-policy` and `nearcast evaluate-uplift` read it, and so does
anything else that reads Parquet. The columns are `COLUMNS`, described in docs/learning-loop.md, then one called
`f_<name>` for each input of the model. The only importer of pyarrow.
"""

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from nearcast.errors import InputError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

FEATURE_PREFIX = "f_"
_TIME = pa.timestamp("ms", tz="UTC")
#: Name and type, in the order of the file.
COLUMNS: tuple[tuple[str, pa.DataType], ...] = (
    # Of the decision: the same in all of its rows.
    ("decision", pa.string()),
    ("customer", pa.string()),
    ("visitor", pa.bool_()),
    ("at", _TIME),
    ("deadline", _TIME),
    ("exported", _TIME),
    ("trigger", pa.string()),
    ("store", pa.string()),
    ("outcome", pa.string()),
    ("reason", pa.string()),
    ("held_out", pa.bool_()),
    ("would_be_promotion", pa.string()),
    ("would_be_sku", pa.string()),
    ("explored", pa.bool_()),
    ("chosen_probability", pa.float64()),
    ("arms", pa.string()),
    ("model_version", pa.string()),
    ("rules_version", pa.string()),
    ("features_hash", pa.string()),
    # Of what could have been done.
    ("position", pa.int16()),
    ("promotion", pa.string()),
    ("sku", pa.string()),
    ("kind", pa.string()),
    ("chosen", pa.bool_()),
    ("stopped_by", pa.string()),
    ("propensity", pa.float64()),
    ("value_cents", pa.float64()),
    ("cost_cents", pa.float64()),
    ("expected_cents", pa.float64()),
    ("probability", pa.float64()),
    ("candidate_held_out", pa.bool_()),
    # What came of it: only where `chosen`.
    ("status", pa.string()),
    ("channel", pa.string()),
    ("delivered", pa.bool_()),
    ("opened", pa.bool_()),
    ("applied", pa.bool_()),
    ("redeemed", pa.bool_()),
    ("applied_at", _TIME),
    ("redeemed_at", _TIME),
    ("redeemed_store", pa.string()),
    ("redeemed_cents", pa.float64()),
    ("reward_cents", pa.float64()),
    ("purchased_after", pa.bool_()),
)
_OF_CHOICES = (
    *("decision", "customer", "at", "position", "promotion", "kind", "chosen", "candidate_held_out", "propensity"),
    *("value_cents", "cost_cents", "expected_cents", "probability", "redeemed", "reward_cents"),
)
#: Rows that are kept in memory before they are written: tens of megabytes.
_ROWS_AT_ONCE = 10_000


class LogWriter:
    """Writes a log file: nobody sees it before it is whole, and nothing is left of it if the block fails.

    Only its owner can read it. Raises `InputError` if there is such a file already, or it can't be written.
    """

    def __init__(self, path: Path, features: Sequence[str]) -> None:
        self._path = path
        self._schema = pa.schema([*COLUMNS, *((FEATURE_PREFIX + name, pa.float64()) for name in features)])
        self._rows: list[Mapping[str, object]] = []
        if path.exists():
            raise InputError("file_exists", "there is such a file already; remove it, or name another", str(path))
        try:
            descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-", suffix=".part")
        except OSError as error:
            raise InputError("unwritable_file", f"can't be created: {error.strerror}", str(path)) from None
        self._part = Path(name)
        self._file = os.fdopen(descriptor, "wb")
        self._writer = pq.ParquetWriter(self._file, self._schema, compression="zstd")

    def __enter__(self) -> Self:
        return self

    def add(self, row: Mapping[str, object]) -> None:
        """One row; a column that it lacks is null."""
        self._rows.append(row)
        if len(self._rows) >= _ROWS_AT_ONCE:
            self._flush()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            # What it has not written by now is not wanted.
            with suppress(OSError):
                self._writer.close()
            with suppress(OSError):
                self._file.close()
            self._part.unlink(missing_ok=True)

    def _finish(self) -> None:
        self._flush()
        with self._writing():
            self._writer.close()
            self._file.flush()
            os.fsync(self._file.fileno())
            self._part.rename(self._path)

    def _flush(self) -> None:
        if self._rows:
            with self._writing():
                self._writer.write_table(pa.Table.from_pylist(self._rows, schema=self._schema))
            self._rows = []

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise InputError("unwritable_file", f"can't be written: {error.strerror}", str(self._path)) from None


def read(path: Path, columns: Sequence[str], *, features: bool = True) -> pd.DataFrame:
    """Those columns of a log, and the model's inputs if `features`. Raises `InputError` naming the file and the fault.

    Columns that others have added can be asked for, too.
    """
    try:
        names = pq.read_schema(path).names
        missing = [name for name in columns if name not in names]
        if missing:
            raise InputError("not_a_decision_log", f"has no column {', '.join(missing)}", str(path))
        inputs = [name for name in names if features and name.startswith(FEATURE_PREFIX)]
        return pq.read_table(path, columns=[*columns, *inputs]).to_pandas()
    except OSError as error:
        raise InputError("unreadable_file", f"can't be read: {error.strerror or error}", str(path)) from None
    except pa.ArrowException as error:
        raise InputError("not_a_decision_log", f"is no Parquet file, or damaged: {error}", str(path)) from None


def feature_columns(frame: pd.DataFrame) -> list[str]:
    """The columns that are the model's inputs."""
    return [name for name in frame.columns if name.startswith(FEATURE_PREFIX)]


@dataclass(frozen=True)
class Logged:
    """Decisions with a choice between at least one offer and nothing, as arrays.

    The first five have an entry per decision, the others one per action that was possible, "nothing" included; the
    actions of a decision stand together, by promotion and then in the order of the decision.
    """

    #: A number from 0 on for each customer; when; and what was done, as an index into the actions.
    customer: Ints
    at_ms: Ints
    chosen: Ints
    redeemed: NDArray[np.bool_]
    #: What it brought: value if redeemed, less the cost.
    reward_cents: Floats

    #: Whose action it is, as an index into the decisions: never falling.
    decision: Ints
    #: How likely it was to be chosen.
    probability: Floats
    value_cents: Floats
    cost_cents: Floats
    #: P(redeem) as it was served; not a number for nothing, and so are `rows`.
    propensity: Floats
    is_nothing: NDArray[np.bool_]
    #: The model's inputs: a row per action, a column per name in `features`.
    rows: Floats
    features: tuple[str, ...]

    #: How many other decisions the log has, by why they can't be used.
    left_out: Mapping[str, int]


def read_choices(path: Path) -> Logged:
    """The decisions of a log from which another policy's value can be told. Raises `InputError`."""
    frame = read(path, _OF_CHOICES)
    frame["decision"] = pd.factorize(frame.decision)[0]
    frame = frame.sort_values(["decision", "promotion", "position"], kind="stable", na_position="first")
    is_nothing = frame.kind == "nothing"
    # What the customer was held out of was no choice, whatever it was worth.
    possible = frame.expected_cents.notna() & ~frame.candidate_held_out.fillna(value=False).astype(bool)
    inputs = feature_columns(frame)
    # In this order: each decision is counted under the first that holds.
    faults = {
        "an alert or a notice was possible": _any(
            frame, frame.kind.isin(["assist", "notice"]) & frame.expected_cents.notna()
        ),
        "nothing but nothing was possible": ~_any(frame, possible & ~is_nothing),
        "no probabilities were noted": _any(frame, possible & frame.probability.isna()),
        "no inputs of the model": _any(frame, possible & ~is_nothing & frame[inputs].isna().any(axis=1)),
        "what came of it is not known": ~_any(frame, possible & frame.chosen & frame.reward_cents.notna()),
    }
    usable = pd.Series(data=True, index=next(iter(faults.values())).index)
    left_out = {}
    for fault, holds in faults.items():
        left_out[fault] = int((usable & holds).sum())
        usable &= ~holds
    frame = frame[possible & frame.decision.map(usable)]
    done = frame.chosen.to_numpy(dtype=bool)
    return Logged(
        customer=pd.factorize(frame.customer[done])[0].astype(np.int64),
        at_ms=frame["at"][done].astype("datetime64[ms, UTC]").astype(np.int64).to_numpy(),
        chosen=np.flatnonzero(done),
        redeemed=frame.redeemed[done].fillna(value=False).to_numpy(dtype=bool),
        reward_cents=frame.reward_cents[done].to_numpy(dtype=float),
        decision=pd.factorize(frame.decision)[0].astype(np.int64),
        probability=frame.probability.to_numpy(dtype=float),
        value_cents=frame.value_cents.to_numpy(dtype=float),
        cost_cents=frame.cost_cents.to_numpy(dtype=float),
        propensity=frame.propensity.to_numpy(dtype=float),
        is_nothing=(frame.kind == "nothing").to_numpy(dtype=bool),
        rows=frame[inputs].to_numpy(dtype=float),
        features=tuple(name.removeprefix(FEATURE_PREFIX) for name in inputs),
        left_out={fault: count for fault, count in left_out.items() if count},
    )


def _any(frame: pd.DataFrame, holds: pd.Series) -> pd.Series:
    """By decision, whether it holds for any of its rows."""
    return holds.groupby(frame.decision).any()
