"""The scorer: the right file or a clear refusal; one call that equals many."""

import hashlib
import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest

import models
from models.features.redeem import REDEEM
from models.manifest import MANIFEST_FILE, MODEL_FILE, Manifest, read, write
from models.scorer import Scorer
from models.training.dataset import Dataset
from nearcast.errors import ConfigurationError

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
    with pytest.raises(ConfigurationError, match=rf"model\.onnx.*lacks {REDEEM.columns[0]}, and has shoe_size"):
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
