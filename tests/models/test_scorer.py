"""The scorer: the right file or a clear refusal; one call that equals many; any trainer's model, if it is sound."""

import asyncio
import hashlib
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

import models
from models.features.redeem import REDEEM
from models.manifest import MANIFEST_FILE, MODEL_FILE, SAMPLES_FILE, Manifest, Reference, Samples, files_of, read, write
from models.scorer import Scorer, ScoringError, TooSlow
from models.training.dataset import Dataset
from nearcast.errors import ConfigurationError
from server.model_registry import loaded
from tests.models import onnx_files

SHIPPED = Path(models.__file__).parent / "artifacts" / "redeem"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the shipped model, to spoil."""
    return Path(shutil.copytree(SHIPPED, tmp_path / "redeem"))


def change(folder: Path, **fields: object) -> Manifest:
    manifest = msgspec.structs.replace(read(folder), **fields)
    write(folder, manifest)
    return manifest


def test_the_shipped_model_ranks_real_households(dataset: Dataset) -> None:
    """On later campaigns of real households, those who redeemed score higher three times out of four."""
    scorer = Scorer.load(SHIPPED)
    later = dataset.where(dataset.at_ms >= 1_502_755_200_000)  # 2017-08-15
    scores = np.array(scorer.score(later.rows.tolist()))
    assert ((scores > 0) & (scores < 1)).all()
    redeemed, others = scores[later.outcome], scores[~later.outcome]
    assert len(redeemed) > 30
    # The AUC by its definition: over all pairs, how often the one who redeemed scores higher.
    assert (redeemed[:, None] > others[None, :]).mean() > 0.75


def test_the_shipped_model_belongs_to_this_code() -> None:
    """Version and manifest say what was loaded."""
    scorer = Scorer.load(SHIPPED)
    digest = hashlib.sha256((SHIPPED / MODEL_FILE).read_bytes()).hexdigest()
    assert scorer.version == f"redeem-{digest[:12]}"
    assert tuple(scorer.manifest.features) == REDEEM.columns
    assert scorer.manifest.customers_left_out == 0
    assert f"# Model card: {scorer.version}" in (SHIPPED / "CARD.md").read_text()


def test_no_rows_no_scores() -> None:
    """Nothing to score is not an error."""
    assert Scorer.load(SHIPPED).score([]) == []


def test_a_batch_scores_as_its_rows_do(dataset: Dataset) -> None:
    """However rows are cut into batches, each gets the same score, to the last bit."""
    scorer = Scorer.load(SHIPPED)
    rows = dataset.rows[:300].tolist()
    one_by_one = [score for row in rows for score in scorer.score([row])]
    for size in (2, 3, 7, 16, 17, 33, 100, 300):
        cut = [scorer.score(rows[start : start + size]) for start in range(0, len(rows), size)]
        assert [score for batch in cut for score in batch] == one_by_one


@pytest.mark.parametrize("width", [0, len(REDEEM.columns) - 1, len(REDEEM.columns) + 1])
def test_a_row_of_another_width_is_refused(width: int) -> None:
    """A programming error, said plainly."""
    with pytest.raises(ValueError, match=f"{len(REDEEM.columns)} features"):
        Scorer.load(SHIPPED).score([[0.0] * width])


def test_a_tampered_model_is_refused(folder: Path) -> None:
    """One flipped bit, and the model does not load; the error names the file."""
    path = folder / MODEL_FILE
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"redeem/model\.onnx has SHA-256"):
        Scorer.load(folder)


def test_a_model_of_other_features_is_refused(folder: Path) -> None:
    """The error says which features differ."""
    names = [*REDEEM.columns[1:], "shoe_size"]
    change(folder, features=names, features_hash="0" * 64)
    with pytest.raises(ConfigurationError, match=r"model\.onnx was trained on other features: shoe_size can't be"):
        Scorer.load(folder)


def test_a_model_of_features_with_another_meaning_is_refused(folder: Path) -> None:
    """Same names, other hash: the code that computes them has changed."""
    change(folder, features_hash="0" * 64)
    with pytest.raises(ConfigurationError, match="another meaning"):
        Scorer.load(folder)


def test_a_file_that_is_no_model_is_refused(folder: Path) -> None:
    """Even if the manifest vouches for it."""
    content = b"not a model"
    (folder / MODEL_FILE).write_bytes(content)
    change(folder, onnx_sha256=hashlib.sha256(content).hexdigest())
    with pytest.raises(ConfigurationError, match=r"model\.onnx is not an ONNX model"):
        Scorer.load(folder)


@pytest.mark.parametrize("name", [MODEL_FILE, MANIFEST_FILE])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    """Which file is missing stands in the error."""
    (folder / name).unlink()
    with pytest.raises(ConfigurationError, match=f"redeem/{name} can't be read"):
        Scorer.load(folder)


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff", b"{}"])
def test_a_manifest_that_is_none_is_refused(folder: Path, content: bytes) -> None:
    """Malformed or incomplete: the error names the file."""
    (folder / MANIFEST_FILE).write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"redeem/manifest\.json is not valid"):
        Scorer.load(folder)


def test_a_manifest_with_an_unknown_field_is_refused(folder: Path) -> None:
    """What this version can't understand it doesn't load."""
    path = folder / MANIFEST_FILE
    path.write_bytes(path.read_bytes().replace(b'"seed"', b'"sneed"'))
    with pytest.raises(ConfigurationError, match="sneed"):
        Scorer.load(folder)


def own(content: bytes, **more: Any) -> Scorer:
    """The model that somebody has brought."""
    return Scorer.of(files_of("own", onnx_files.files_of(content, **more)), "redeem")


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("shape", ["vector", "column", "two", "pair"])
def test_any_common_shape_of_output_will_do(shape: str, double: bool) -> None:
    """One probability a row, alone or beside its complement, with or without labels, in either precision."""
    scorer = own(onnx_files.sound(shape, double=double), samples=onnx_files.samples_of())
    rows = np.random.default_rng(2).normal(0, 2, (21, onnx_files.WIDTH))
    assert np.abs(np.array(scorer.score(rows.tolist())) - onnx_files.mean_sigmoid(rows)).max() < 1e-6


def test_a_model_takes_the_features_it_names() -> None:
    """Some of the kind's columns, in an order of its own; it is given those and no others."""
    names = [REDEEM.columns[5], REDEEM.columns[0], REDEEM.columns[3]]
    scorer = own(onnx_files.sound(width=3), features=names, samples=onnx_files.samples_of(width=3))
    row = [float(place) for place in range(onnx_files.WIDTH)]
    assert scorer.score([row]) == pytest.approx([1 / (1 + np.exp(-(5 + 0 + 3) / 3))], abs=1e-6)
    with pytest.raises(ValueError, match=f"{onnx_files.WIDTH} features"):
        scorer.score([row[:3]])


def test_scores_of_some_features_do_not_depend_on_the_batch() -> None:
    """As for the shipped model, to the last bit."""
    scorer = own(onnx_files.sound("pair", width=4), features=REDEEM.columns[2:6])
    rows = np.random.default_rng(3).normal(0, 2, (50, onnx_files.WIDTH)).tolist()
    assert [score for row in rows for score in scorer.score([row])] == scorer.score(rows)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (onnx_files.taking([1, onnx_files.WIDTH]), "must take .any number of rows"),
        (onnx_files.taking([None, 3]), f"must take .any number of rows, {onnx_files.WIDTH}"),
        (onnx_files.taking([None, onnx_files.WIDTH, 1]), "must take .any number of rows"),
        (onnx_files.taking([None, onnx_files.WIDTH], outputs=2), "must give probabilities as one tensor"),
        (onnx_files.taking([None, onnx_files.WIDTH], [None, None]), "it gives the shape"),
        (onnx_files.sound(shift=float("nan")), "gives nan, which is no probability"),
        (onnx_files.looping(10**12), "64 rows take more than"),
        (onnx_files.with_outside_weights("weights.bin"), "has weights in other files"),
        (onnx_files.with_outside_weights("../weights.bin"), "has weights in other files"),
        (onnx_files.with_outside_weights("/etc/hostname"), "has weights in other files"),
        (onnx_files.sound()[:-40], "is not an ONNX model that can be run"),
        (b"", "is not an ONNX model that can be run"),
    ],
    ids=["rows", "width", "rank", "outputs", "shape", "nan", "slow", "near", "above", "absolute", "cut", "empty"],
)
def test_an_unsound_model_is_refused(
    content: bytes, fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is wrong with it, the error names file and fault; no other file is read, and nothing hangs."""
    (tmp_path / "weights.bin").write_bytes(bytes(4 * onnx_files.WIDTH))
    (tmp_path / "folder").mkdir()
    for folder in (tmp_path, tmp_path / "folder"):
        monkeypatch.chdir(folder)
        with pytest.raises(ConfigurationError, match=rf"own/model\.onnx.*{fault}"):
            own(content)


def test_scores_that_are_no_probabilities_are_refused(tmp_path: Path) -> None:
    """A model that gives log-odds, say: the error says which value it met."""
    with pytest.raises(ConfigurationError, match="which is no probability"):
        own(onnx_files.linear())


@pytest.mark.parametrize(
    ("samples", "fault"),
    [
        (onnx_files.samples_of(shift=0.001), "differs by .* from the trainer's model"),
        (onnx_files.samples_of(count=31), r"samples\.json is not valid"),
        (onnx_files.samples_of(width=3), r"samples\.json must have \d+ features"),
        (Samples(onnx_files.samples_of().rows, onnx_files.samples_of().probabilities[1:]), r"samples\.json must have"),
        (Samples(onnx_files.samples_of().rows, [2.0] * 40), r"samples\.json is not valid"),
    ],
    ids=["other", "few", "narrow", "short", "range"],
)
def test_a_model_that_does_not_score_as_its_trainer_said_is_refused(samples: Samples, fault: str) -> None:
    """The rows stored beside it tell."""
    with pytest.raises(ConfigurationError, match=fault):
        own(onnx_files.sound(), samples=samples)


def test_ranking_counts_even_where_the_difference_is_small() -> None:
    """Two rows the other way round, 1.6e-5 apart, each off by less than 1e-5: refused for their order."""
    rows = np.zeros((40, onnx_files.WIDTH))
    rows[:, 0] = np.linspace(-3, 3, 40)
    rows[21] = rows[20]
    rows[21, 0] += 64e-6 * onnx_files.WIDTH
    swapped = onnx_files.mean_sigmoid(rows)
    swapped[20], swapped[21] = swapped[20] + 9e-6, swapped[21] - 9e-6
    own(onnx_files.sound(), samples=Samples(rows.tolist(), onnx_files.mean_sigmoid(rows).tolist()))
    with pytest.raises(ConfigurationError, match="ranks rows otherwise"):
        own(onnx_files.sound(), samples=Samples(rows.tolist(), swapped.tolist()))


def test_cut_samples_are_refused(folder: Path) -> None:
    """The error names the file."""
    (folder / SAMPLES_FILE).write_bytes(b'{"rows": [[0.0')
    with pytest.raises(ConfigurationError, match=r"redeem/samples\.json is not valid"):
        Scorer.load(folder)


def test_a_file_that_is_too_large_is_refused(folder: Path) -> None:
    """Before it is looked at."""
    (folder / MANIFEST_FILE).write_bytes(b" " * (1024 * 1024 + 1))
    with pytest.raises(ConfigurationError, match=r"redeem/manifest\.json is larger than 1048576 bytes"):
        Scorer.load(folder)


def test_a_model_of_another_kind_is_refused(folder: Path) -> None:
    """A model of another question answers none of ours."""
    change(folder, kind="channel")
    with pytest.raises(ConfigurationError, match="of kind 'channel', wanted is 'redeem'"):
        Scorer.load(folder)


def test_a_feature_named_twice_is_refused() -> None:
    """Its hash is right, but that can't be meant."""
    with pytest.raises(ConfigurationError, match="takes a feature twice"):
        own(onnx_files.sound(width=2), features=[REDEEM.columns[0]] * 2)


def test_a_run_over_its_budget_is_stopped() -> None:
    """The error says so, and the next run is as good as ever."""
    scorer = own(onnx_files.moody())
    rows = np.zeros((2, onnx_files.WIDTH), dtype=np.float32)
    rows[1, onnx_files.SLOW] = onnx_files.TRIGGER
    for _ in range(2):
        with pytest.raises(TooSlow, match=r"take more than 0\.02 s"):
            scorer.score(rows, 0.02)
        assert scorer.score(rows[:1], 0.02) == [0.5]


def test_a_run_that_fails_says_why() -> None:
    """What onnxruntime says is passed on."""
    scorer = own(onnx_files.moody())
    rows = np.zeros((2, onnx_files.WIDTH), dtype=np.float32)
    rows[1, onnx_files.CRASH] = onnx_files.TRIGGER
    with pytest.raises(ScoringError, match="out of data bounds"):
        scorer.score(rows)


def test_a_call_leaves_nothing_for_the_next() -> None:
    """Rows that fill a batch up are zeros, not what was scored before."""
    scorer = own(onnx_files.crashing())
    rows = np.zeros((9, onnx_files.WIDTH), dtype=np.float32)
    rows[8, 1] = onnx_files.TRIGGER
    with pytest.raises(ScoringError, match="out of data bounds"):
        scorer.score(rows)
    assert scorer.score(rows[:8]) == [0.5] * 8


async def test_a_model_that_takes_long_to_load_keeps_nobody_waiting() -> None:
    """It can't be interrupted, so it is left behind."""
    files = files_of("own", onnx_files.files_of(onnx_files.slow_to_load()))
    with pytest.raises(ConfigurationError, match=r"own can't be loaded within 0\.02 s"):
        await loaded(files, "redeem", 0.05, within_s=0.02)
    for thread in threading.enumerate():
        if thread.name == "model loader":
            await asyncio.to_thread(thread.join)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda reference: {"features": reference.features[:-1]}, "a reference for 7 features, and takes 8"),
        (
            lambda reference: {"score": msgspec.structs.replace(reference.score, shares=reference.score.shares[:-1])},
            "one share more than edges",
        ),
        (
            lambda reference: {"score": msgspec.structs.replace(reference.score, edges=reference.score.edges[::-1])},
            "rising edges",
        ),
    ],
)
def test_a_reference_that_drift_can_not_be_measured_by_is_refused(
    folder: Path, spoil: Callable[[Reference], dict[str, Any]], said: str
) -> None:
    """Else it would fail once a minute in every process that scores with it."""
    reference = read(folder).reference
    assert reference is not None
    change(folder, reference=msgspec.structs.replace(reference, **spoil(reference)))
    with pytest.raises(ConfigurationError, match=said):
        Scorer.load(folder)
