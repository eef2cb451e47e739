"""The sample retailer is a world that nearcast's vocabulary accepts, and that makes sense as a place."""

import math
from pathlib import Path
from typing import Any

import msgspec
import pytest
from shapely.geometry import Point
from shapely.geometry import Polygon as Shape

from clients import city, sample
from clients.geo import Frame, Spot
from nearcast.world import Circle, Fence, Polygon, Product, Promotion, Stock, Store


class Document(msgspec.Struct, forbid_unknown_fields=True):
    """A world document, by the vocabulary alone."""

    stores: list[Store] = []
    fences: list[Fence] = []
    products: list[Product] = []
    promotions: list[Promotion] = []
    stock: list[Stock] = []


def _shape(fence: Fence) -> Shape:
    assert isinstance(fence.geometry, Polygon)
    return Shape(fence.geometry.coordinates[0])


def _check_references(world: Document) -> None:
    stores = {store.id for store in world.stores}
    fences = {fence.id for fence in world.fences}
    skus = {product.sku for product in world.products}
    segments = {product.segment for product in world.products}
    for fence in world.fences:
        assert fence.store in stores
        assert fence.parent is None or fence.parent in fences
    for product in world.products:
        assert {display.store for display in product.displays} <= stores
    for promotion in world.promotions:
        assert set(promotion.where.fences) <= fences
        assert set(promotion.where.stores) <= stores
        assert set(promotion.what.skus) <= skus
        assert set(promotion.what.segments) <= segments
    for row in world.stock:
        assert row.store in stores
        assert row.sku in skus


def test_documents_decode_and_refer_to_what_exists(retailer: sample.Retailer) -> None:
    """What is sent to `PUT /v1/catalogue` is valid, whole and self-consistent."""
    world = Document()
    for document in retailer.documents():
        part = msgspec.json.decode(msgspec.json.encode(document), type=Document)
        for name in Document.__struct_fields__:
            getattr(world, name).extend(getattr(part, name))
    assert len(world.stores) == 6
    assert tuple(world.fences) == retailer.fences
    assert tuple(world.stock) == retailer.stock
    assert {promotion.trigger for promotion in world.promotions} == {
        "walk_past", "enter", "near_product", "dwell", "help_request", "points_reached", "order_status",
    }  # fmt: skip
    _check_references(world)


def test_the_world_is_deterministic(retailer: sample.Retailer) -> None:
    """The same seed builds the same world; stock depends on the seed."""
    wanted = list(retailer.items)
    assert sample.build(retailer.items, wanted, 7) == sample.build(retailer.items, wanted, 7)
    assert sample.build(retailer.items, wanted, 8).stock != sample.build(retailer.items, wanted, 7).stock


def test_departments_lie_inside_buildings_and_displays_inside_departments(retailer: sample.Retailer) -> None:
    """Shapely agrees that the floor plan is one: valid polygons, nothing sticks out, departments don't overlap."""
    by_id = {fence.id: fence for fence in retailer.fences}
    for shop in retailer.shops:
        building = _shape(by_id[f"{shop.store.id}/building"])
        assert building.is_valid
        departments = [_shape(by_id[floor.fence]) for floor in shop.floors]
        for index, department in enumerate(departments):
            assert department.is_valid
            assert building.contains(department)
            assert not any(department.intersects(other) for other in departments[index + 1 :])
        for product in retailer.products:
            for display in product.displays:
                if display.store == shop.store.id:
                    assert any(department.contains(Point(display.lng, display.lat)) for department in departments)


def test_vicinities_hold_their_buildings(retailer: sample.Retailer) -> None:
    """Whoever is in the building is also near the shop."""
    by_id = {fence.id: fence for fence in retailer.fences}
    for shop in retailer.shops:
        geometry = by_id[f"{shop.store.id}/vicinity"].geometry
        assert isinstance(geometry, Circle)
        centre = city.FRAME.spot(geometry.center[1], geometry.center[0])
        assert all(corner.to(centre) < geometry.radius_m for corner in shop.house.outline)


@pytest.mark.parametrize("spot", [Spot(0, 0), Spot(1080, 475), Spot(-120.5, 33.25)])
def test_the_plan_maps_to_degrees_and_back(spot: Spot) -> None:
    """A place keeps its position to a few centimetres, also on a turned plan."""
    frame = Frame(lat=48.2, lng=16.38, turn_deg=33.0)
    lat, lng = frame.lat_lng(spot)
    assert frame.spot(lat, lng).to(spot) < 0.05


def test_distances_on_the_plan_are_those_on_earth() -> None:
    """A kilometre on the plan is a kilometre by the haversine formula, within a tenth of a percent."""
    frame = Frame(lat=48.2, lng=16.38, turn_deg=33.0)
    (lat_a, lng_a), (lat_b, lng_b) = frame.lat_lng(Spot(0, 0)), frame.lat_lng(Spot(600, 800))
    a, b = math.radians(lat_a), math.radians(lat_b)
    half = math.sin((b - a) / 2) ** 2 + math.cos(a) * math.cos(b) * math.sin(math.radians(lng_b - lng_a) / 2) ** 2
    assert 2 * 6_371_008.8 * math.asin(math.sqrt(half)) == pytest.approx(1000, rel=1e-3)


def test_the_small_example_is_valid() -> None:
    """`docs/examples/shop.yaml`, which the README's tour uses, is a world like any other."""
    text = (Path(__file__).parents[2] / "docs/examples/shop.yaml").read_text()
    world: Any = msgspec.yaml.decode(text, type=Document)
    assert (len(world.stores), len(world.products), len(world.promotions)) == (1, 2, 3)
    _check_references(world)
