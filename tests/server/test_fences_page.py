"""The page about places: its examples work, and its table has every field."""

import re
from pathlib import Path

from geofence.displays import display_fences
from geofence.geojson import fences_from_geojson, fences_to_geojson
from geofence.index import FenceIndex
from geofence.rules import DWELL_S, EXIT_MARGIN_M
from nearcast.hours import store_is_open
from nearcast.ids import FenceId
from nearcast.world import Display, Fence, Product
from offers.loading import load_world
from offers.worldfile import check_references, remarks
from tests.nearcast.test_hours import ms

PAGE = (Path(__file__).parents[2] / "docs/fences.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    (found,) = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    return str(found)


def test_the_example() -> None:
    """It loads without a fault or a remark, and means what the page says."""
    world = load_world(block("yaml"), "fences.md")
    assert check_references(world) == []
    assert remarks(world) == []
    (graben,) = world.stores
    assert store_is_open(graben, ms("2026-12-24T13:59+01:00"))
    assert not store_is_open(graben, ms("2026-12-24T14:00+01:00"))
    assert not store_is_open(graben, ms("2026-12-25T18:00+01:00"))
    assert store_is_open(graben, ms("2026-12-19T01:59+01:00"))
    index = FenceIndex.build(world.fences)
    bar = index.rules[FenceId("graben-bar")]
    assert (bar.exit_margin_m, bar.dwell_ms, bar.floor) == (15.0, 120_000, 1)


def test_the_geojson_example() -> None:
    """It is read, and written as it is read."""
    fences = fences_from_geojson(block("json").encode())
    assert [type(fence.geometry).__name__ for fence in fences] == ["Circle", "Corridor"]
    assert fences_from_geojson(fences_to_geojson(fences)) == fences


def test_the_table_has_every_field() -> None:
    """All fields of a fence, with the defaults of the code."""
    rows = re.findall(
        r"^\| (`.*) \| .* \| (.*) \|$", PAGE.partition("## Fields")[2].partition("\n## ")[0], re.MULTILINE
    )
    told = {field: default for names, default in rows for field in re.findall(r"`(\w+)`", names)}
    assert set(told) == set(Fence.__struct_fields__)
    assert told["dwell_s"] == f"inherited; else {DWELL_S:g}"
    assert told["exit_margin_m"] == f"inherited; else {EXIT_MARGIN_M:g}"


def test_a_display_in_a_fence() -> None:
    """A display that names its department is in the department, the store and the vicinity, and under their rules."""
    world = load_world(block("yaml"), "fences.md")
    display = Display(store="graben", lat=48.2087, lng=16.3702, parent="graben-bar")
    (shown,) = display_fences(Product(sku="gin", name="Gin", segment="drinks", displays=[display]))
    index = FenceIndex.build([*world.fences, shown])
    assert [fence.id for fence in index.ancestors(shown.fence_id)] == ["graben-bar", "graben-shop", "graben-street"]
    rules = index.rules[shown.fence_id]
    assert (rules.floor, rules.dwell_ms, rules.exit_margin_m) == (1, 120_000, display.radius_m)
    assert rules.hours == world.fences[2].hours
