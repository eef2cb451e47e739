"""Display positions become product fences."""

from geofence.displays import display_fences
from nearcast.world import PRODUCT_RADIUS_M, Circle, Display, Product


def test_fences_of_a_product() -> None:
    """One circle of three feet per display; ids count within the store; each knows its SKU and store."""
    displays = [
        Display(store="s1", lat=48.2, lng=16.3),
        Display(store="s2", lat=48.3, lng=16.4, radius_m=20.0),
        Display(store="s1", lat=48.201, lng=16.301),
    ]
    fences = display_fences(Product(sku="oat-1", name="Oat drink", segment="dairy", displays=displays))
    assert [fence.id for fence in fences] == ["s1:oat-1:0", "s2:oat-1:0", "s1:oat-1:1"]
    assert {fence.kind for fence in fences} == {"product"}
    assert {fence.sku for fence in fences} == {"oat-1"}
    assert [fence.store for fence in fences] == ["s1", "s2", "s1"]
    assert fences[0].geometry == Circle(center=(16.3, 48.2), radius_m=PRODUCT_RADIUS_M)
    assert [fence.exit_margin_m for fence in fences] == [PRODUCT_RADIUS_M, 10.0, PRODUCT_RADIUS_M]


def test_what_a_display_says_of_its_place() -> None:
    """The fence around it, the floor and the beacons are those of the fence."""
    display = Display(store="s1", lat=48.2, lng=16.3, parent="dairy", floor=-1, beacons=["b1", "b2"])
    plain = Display(store="s1", lat=48.2, lng=16.3)
    told, silent = display_fences(Product(sku="x", name="x", segment="x", displays=[display, plain]))
    assert (told.parent, told.floor, told.beacons) == ("dairy", -1, ["b1", "b2"])
    assert (silent.parent, silent.floor, silent.beacons) == (None, None, [])


def test_nothing_on_display() -> None:
    """A product without displays has no fences."""
    assert display_fences(Product(sku="x", name="x", segment="x")) == []
