"""The command line, as far as it reads and writes files."""

import json
from pathlib import Path

from click.testing import CliRunner

from server.cli import main

SHOP = Path(__file__).parents[2] / "docs" / "examples" / "shop.yaml"


def test_a_world_is_checked() -> None:
    """The documentation's example is fine, and the command says what is in it."""
    answer = CliRunner().invoke(main, ["world", "check", str(SHOP)])
    assert answer.exit_code == 0, answer.output
    assert "1 stores, 2 fences, 2 products, 3 promotions" in answer.output


def test_fences_as_geojson_and_back(tmp_path: Path) -> None:
    """What `geojson` prints is read again from a file beside the rest of the world, in any order."""
    printed = CliRunner().invoke(main, ["world", "geojson", str(SHOP)])
    assert printed.exit_code == 0, printed.output
    kinds = [feature["geometry"]["type"] for feature in json.loads(printed.output)["features"]]
    assert kinds == ["Point", "Polygon"]
    (tmp_path / "fences.geojson").write_text(printed.output)
    text = SHOP.read_text()
    start, end = text.index("fences:"), text.index("products:")
    (tmp_path / "rest.yaml").write_text(text[:start] + text[end:])
    both = [str(tmp_path / "fences.geojson"), str(tmp_path / "rest.yaml")]
    answer = CliRunner().invoke(main, ["world", "check", *both])
    assert answer.exit_code == 0, answer.output
    assert "1 stores, 2 fences" in answer.output


def test_what_is_wrong_is_named(tmp_path: Path) -> None:
    """Every file at fault is named, with the place; also one that isn't text, and a reference to nothing."""
    (tmp_path / "a.yaml").write_text("stores:\n  - {id: s, name: S, lat: 91, lng: 0}\n")
    (tmp_path / "b.geojson").write_text('{"type": "FeatureCollection", "features": [{}]}')
    (tmp_path / "c.yaml").write_bytes(b"\xff\xfe\x00")
    files = [str(tmp_path / name) for name in ("a.yaml", "b.geojson", "c.yaml")]
    answer = CliRunner().invoke(main, ["world", "check", *files])
    assert answer.exit_code == 2
    for said in ("a.yaml:2", "b.geojson: features[0]", "c.yaml"):
        assert said in answer.output
    (tmp_path / "d.yaml").write_text("stock: [{store: nowhere, sku: x, quantity: 1}]\n")
    answer = CliRunner().invoke(main, ["world", "check", str(tmp_path / "d.yaml")])
    assert answer.exit_code == 2
    assert "nowhere" in answer.output
