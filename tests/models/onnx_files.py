"""ONNX models made for tests, with `onnx.helper`: sound ones in several shapes, and ones that misbehave on command."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto
from onnx import helper as make

from models.features.base import Kind
from models.features.redeem import REDEEM
from models.features.sets import SETS
from models.manifest import MANIFEST_FILE, MODEL_FILE, SAMPLES_FILE, Samples

WIDTH = len(REDEEM.columns)
#: What `moody` models look for in a row, by column: there they crash, give no number, take for ever.
TRIGGER = 777.0
CRASH, NAN, SLOW = 0, 1, 2


def mean_sigmoid(rows: NDArray[np.float64], shift: float = 0.0) -> NDArray[np.float64]:
    """What all models here give, as numpy has it: sigmoid(mean of the row + shift)."""
    return 1 / (1 + np.exp(-(np.asarray(rows, dtype=np.float64).mean(axis=1) + shift)))


def sound(shape: str = "vector", *, width: int = WIDTH, shift: float = 0.0, double: bool = False) -> bytes:
    """A model whose output is a "vector" [n], a "column" [n, 1], "two" columns [n, 2], or the "pair" of skl2onnx."""
    number = TensorProto.DOUBLE if double else TensorProto.FLOAT
    nodes = [
        make.make_node("ReduceMean", ["X", "axis"], ["mean"], keepdims=int(shape != "vector")),
        make.make_node("Add", ["mean", "shift"], ["logit"]),
        make.make_node("Sigmoid", ["logit"], ["p"]),
    ]
    constants = [
        make.make_tensor("axis", TensorProto.INT64, [1], [1]),
        make.make_tensor("shift", number, [], [shift]),
    ]
    outputs = [make.make_tensor_value_info("p", number, [None] if shape == "vector" else [None, 1])]
    if shape in ("two", "pair"):
        nodes += [
            make.make_node("Sub", ["one", "p"], ["q"]),
            make.make_node("Concat", ["q", "p"], ["probabilities"], axis=1),
        ]
        constants.append(make.make_tensor("one", number, [], [1.0]))
        outputs = [make.make_tensor_value_info("probabilities", number, [None, 2])]
    if shape == "pair":
        nodes.append(make.make_node("ArgMax", ["probabilities"], ["label"], axis=1, keepdims=0))
        outputs.insert(0, make.make_tensor_value_info("label", TensorProto.INT64, [None]))
    return _bytes(nodes, [make.make_tensor_value_info("X", number, [None, width])], outputs, constants)


def linear() -> bytes:
    """A model that gives log-odds."""
    nodes = [make.make_node("ReduceMean", ["X", "axis"], ["p"], keepdims=0)]
    return _bytes(nodes, [_rows()], [_vector()], [_axis()])


def looping(turns: int) -> bytes:
    """A model that goes round a loop so many times, whatever the rows, before it answers."""
    nodes = [
        *_loop("turns"),
        make.make_node("ReduceMean", ["X", "axis"], ["mean"], keepdims=0),
        make.make_node("Add", ["mean", "looped"], ["logit"]),
        make.make_node("Sigmoid", ["logit"], ["p"]),
    ]
    return _bytes(nodes, [_rows()], [_vector()], [*_loop_constants(), _axis(), _int("turns", turns)])


def moody(shift: float = 0.0, *, trigger: float = TRIGGER, crash_column: int = CRASH) -> bytes:
    """A sound model until `trigger` stands in one of the columns `crash_column`, `NAN` and `SLOW` of a row."""
    nodes = [
        make.make_node("Equal", ["X", "trigger"], ["hit"]),
        make.make_node("Cast", ["hit"], ["hits"], to=TensorProto.FLOAT),
    ]
    columns = ("crash", "nan", "slow")
    nodes += [make.make_node("Gather", ["hits", f"{name}_column"], [name], axis=1) for name in columns]
    nodes += [
        # Beyond the end of a table of one.
        make.make_node("Cast", ["crash"], ["place"], to=TensorProto.INT64),
        make.make_node("Gather", ["table", "place"], ["nothing"]),
        make.make_node("Cast", ["nan"], ["is_nan"], to=TensorProto.BOOL),
        make.make_node("ReduceMax", ["slow"], ["is_slow"], keepdims=0),
        make.make_node("Mul", ["is_slow", "for_ever"], ["turns_wanted"]),
        make.make_node("Cast", ["turns_wanted"], ["turns"], to=TensorProto.INT64),
        *_loop("turns"),
        make.make_node("ReduceMean", ["X", "axis"], ["mean"], keepdims=0),
        make.make_node("Add", ["mean", "shift"], ["shifted"]),
        make.make_node("Add", ["shifted", "nothing"], ["added"]),
        make.make_node("Add", ["added", "looped"], ["logit"]),
        make.make_node("Sigmoid", ["logit"], ["sigmoid"]),
        make.make_node("Where", ["is_nan", "not_a_number", "sigmoid"], ["p"]),
    ]
    constants = [
        *_loop_constants(),
        _axis(),
        _float("trigger", trigger),
        _float("shift", shift),
        _float("for_ever", 1e12),
        _float("not_a_number", float("nan")),
        make.make_tensor("table", TensorProto.FLOAT, [1], [0.0]),
        _int("crash_column", crash_column),
        _int("nan_column", NAN),
        _int("slow_column", SLOW),
    ]
    return _bytes(nodes, [_rows()], [_vector()], constants)


def crashing() -> bytes:
    """sigmoid of a row's first number; crashes if any row, one that only fills a batch up too, has `TRIGGER` second."""
    nodes = [
        make.make_node("Gather", ["X", "first"], ["logit"], axis=1),
        make.make_node("Gather", ["X", "second"], ["watched"], axis=1),
        make.make_node("Equal", ["watched", "trigger"], ["hit"]),
        make.make_node("Cast", ["hit"], ["place"], to=TensorProto.INT64),
        make.make_node("Gather", ["table", "place"], ["nothing"]),
        make.make_node("Add", ["logit", "nothing"], ["added"]),
        make.make_node("Sigmoid", ["added"], ["p"]),
    ]
    constants = [
        _int("first", 0),
        _int("second", 1),
        _float("trigger", TRIGGER),
        make.make_tensor("table", TensorProto.FLOAT, [1], [0.0]),
    ]
    return _bytes(nodes, [_rows()], [_vector()], constants)


def slow_to_load(side: int = 1_000) -> bytes:
    """A model of constants that onnxruntime multiplies while it loads it; that can't be interrupted."""
    nodes = [
        make.make_node(
            "ConstantOfShape", ["square"], ["m0"], value=make.make_tensor("v", TensorProto.FLOAT, [1], [1e-6])
        )
    ]
    nodes += [make.make_node("MatMul", [f"m{step}", "m0"], [f"m{step + 1}"]) for step in range(6)]
    nodes += [
        make.make_node("ReduceMean", ["m6"], ["constant"], keepdims=0),
        make.make_node("ReduceMean", ["X", "axis"], ["mean"], keepdims=0),
        make.make_node("Add", ["mean", "constant"], ["logit"]),
        make.make_node("Sigmoid", ["logit"], ["p"]),
    ]
    square = make.make_tensor("square", TensorProto.INT64, [2], [side, side])
    return _bytes(nodes, [_rows()], [_vector()], [square, _axis()])


def with_outside_weights(location: str) -> bytes:
    """A model whose weights are said to be in another file."""
    weights = make.make_tensor("W", TensorProto.FLOAT, [WIDTH, 1], [0.0] * WIDTH)
    weights.ClearField("float_data")
    weights.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", str(4 * WIDTH))):
        entry = weights.external_data.add()
        entry.key, entry.value = key, value
    nodes = [make.make_node("MatMul", ["X", "W"], ["logit"]), make.make_node("Sigmoid", ["logit"], ["p"])]
    return _bytes(nodes, [_rows()], [make.make_tensor_value_info("p", TensorProto.FLOAT, [None, 1])], [weights])


def taking(shape: Sequence[int | None], output: Sequence[int | None] = (None,), outputs: int = 1) -> bytes:
    """A model of the wrong shape: what it takes, and how many outputs of which shape it gives."""
    nodes = [make.make_node("Sigmoid", ["X"], [f"p{place}"]) for place in range(outputs)]
    given = [make.make_tensor_value_info(f"p{place}", TensorProto.FLOAT, list(output)) for place in range(outputs)]
    return _bytes(nodes, [make.make_tensor_value_info("X", TensorProto.FLOAT, list(shape))], given, [])


def files_of(
    content: bytes,
    *,
    name: str = "own",
    kind: Kind = "redeem",
    features: Sequence[str] | None = None,
    samples: Samples | None = None,
    **more: object,
) -> dict[str, bytes]:
    """The files of a model as somebody would bring it: the least manifest there may be, and `more` of it."""
    names = list(features or SETS[kind].columns)
    manifest: dict[str, object] = {
        "kind": kind,
        "name": name,
        "onnx_sha256": hashlib.sha256(content).hexdigest(),
        "features": names,
        "features_hash": SETS[kind].hash_of(names),
    }
    files = {MODEL_FILE: content, MANIFEST_FILE: msgspec.json.encode(manifest | more)}
    if samples is not None:
        files[SAMPLES_FILE] = msgspec.json.encode(samples)
    return files


def samples_of(shift: float = 0.0, count: int = 40, width: int = WIDTH) -> Samples:
    """Rows with the probabilities that `mean_sigmoid` gives them."""
    rows = np.random.default_rng(1).normal(0, 1, (count, width)).astype(np.float32).astype(np.float64)
    return Samples(rows.tolist(), mean_sigmoid(rows, shift).tolist())


def write_into(folder: Path, files: Mapping[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def _loop(turns: str) -> list[NodeProto]:
    body = make.make_graph(
        [make.make_node("Identity", ["go"], ["go_on"]), make.make_node("Identity", ["sum"], ["sum_out"])],
        "body",
        [
            make.make_tensor_value_info("turn", TensorProto.INT64, []),
            make.make_tensor_value_info("go", TensorProto.BOOL, []),
            make.make_tensor_value_info("sum", TensorProto.FLOAT, []),
        ],
        [
            make.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            make.make_tensor_value_info("sum_out", TensorProto.FLOAT, []),
        ],
    )
    return [make.make_node("Loop", [turns, "yes", "zero"], ["looped"], body=body)]


def _loop_constants() -> list[TensorProto]:
    return [make.make_tensor("yes", TensorProto.BOOL, [], [True]), _float("zero", 0.0)]


def _axis() -> TensorProto:
    return make.make_tensor("axis", TensorProto.INT64, [1], [1])


def _float(name: str, value: float) -> TensorProto:
    return make.make_tensor(name, TensorProto.FLOAT, [], [value])


def _int(name: str, value: int) -> TensorProto:
    return make.make_tensor(name, TensorProto.INT64, [], [value])


def _rows() -> ValueInfoProto:
    return make.make_tensor_value_info("X", TensorProto.FLOAT, [None, WIDTH])


def _vector() -> ValueInfoProto:
    return make.make_tensor_value_info("p", TensorProto.FLOAT, [None])


def _bytes(
    nodes: Sequence[NodeProto],
    inputs: Sequence[ValueInfoProto],
    outputs: Sequence[ValueInfoProto],
    constants: Sequence[TensorProto],
) -> bytes:
    graph = make.make_graph(list(nodes), "test", list(inputs), list(outputs), list(constants))
    model: ModelProto = make.make_model(graph, opset_imports=[make.make_opsetid("", 18)], ir_version=10)
    content: bytes = model.SerializeToString()
    return content
