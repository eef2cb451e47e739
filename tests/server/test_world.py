"""The kept world: what a change is checked against, who may write it, and what happens when it can't be built."""

import asyncio
from datetime import date

import msgspec
import pytest
from redis.asyncio import Redis

from nearcast import keys
from nearcast.errors import Conflict, Fenced, InputError, NotFound
from nearcast.hours import Timetable
from nearcast.ids import FenceId, Sku, StoreId
from nearcast.world import (
    Circle,
    Display,
    Fence,
    OpenHours,
    Polygon,
    Product,
    Promotion,
    SpecialDay,
    Stock,
    Store,
    What,
    Words,
)
from offers.worldfile import WorldFile
from server.world import World, WorldStore, build
from tests.server.town import LAT, LNG, WORLD

PROMISE = Promotion(
    id="early", name="Before its product", trigger="enter", what=What(skus=["tea"]), words={"en": Words(title="Tea")}
)
TEA = Product(sku="tea", name="Tea", segment="drinks")


def fence(name: str, parent: str | None = None) -> Fence:
    return Fence(id=name, store="graben", kind="department", geometry=Circle((LNG, LAT), 9.0), parent=parent)


BEANS = Stock(store="graben", sku="beans", quantity=7)


@pytest.fixture
async def world(redis: Redis) -> WorldStore:
    """The town, stored."""
    store = WorldStore(redis)
    await store.put(WORLD)
    return store


async def stocked(world: WorldStore, sku: str, store: str = "graben") -> int | None:
    pair = (StoreId(store), Sku(sku))
    return (await world.stock([pair])).get(pair)


async def test_others_read_what_was_put(redis: Redis, world: WorldStore) -> None:
    """The snapshot of the process that changed the world equals the one that every other process reads."""
    other = WorldStore(redis)
    await other.refresh()
    assert other.current.version == world.current.version == 1
    assert other.current.items == world.current.items
    assert other.current.catalogue == world.current.catalogue
    assert other.current.fences.fences == world.current.fences.fences
    assert (await stocked(other, "beans"), await stocked(other, "never")) == (5, None)


async def test_a_dangling_item_blocks_nobody(redis: Redis, world: WorldStore) -> None:
    """After a promotion came before its product, every other change is still taken; new dangling ones are refused."""
    await world.apply(WorldFile(promotions=[PROMISE]), [])
    await world.put(WorldFile(stores=[Store(id="ring", name="Ring", lat=LAT, lng=LNG)]))
    await world.put(WorldFile(stock=[BEANS]))
    await WorldStore(redis).put(WORLD)
    await world.put(WorldFile(promotions=[PROMISE]))
    await world.remove("product", "gone")
    with pytest.raises(InputError, match="'nowhere'") as refused:
        await world.put(WorldFile(products=[TEA], fences=[msgspec.structs.replace(fence("lost"), store="nowhere")]))
    assert refused.value.reason == "unknown_reference"
    assert "tea" not in str(refused.value)
    await world.put(WorldFile(products=[TEA]))
    with pytest.raises(Conflict, match="'tea'"):
        await world.remove("product", "tea")
    assert "tea" in world.current.catalogue.products


async def test_remove(redis: Redis, world: WorldStore) -> None:
    """What nothing refers to can go; what is needed stays; what isn't there is said to be so."""
    version = await world.remove("fence", "inside")
    assert "inside" not in world.current.fences.by_id
    with pytest.raises(NotFound):
        await world.remove("fence", "inside")
    with pytest.raises(Conflict, match="still needed"):
        await world.remove("store", "graben")
    other = WorldStore(redis)
    await other.refresh()
    assert other.current.version == version
    assert "inside" not in other.current.fences.by_id


async def test_racing_changes_that_only_fit_alone(redis: Redis, world: WorldStore) -> None:
    """Two processes each make the other's fence a parent: one is refused, and the world can be built everywhere."""
    await world.put(WorldFile(fences=[fence("a"), fence("b")]))
    one, two = WorldStore(redis), WorldStore(redis)
    await asyncio.gather(one.refresh(), two.refresh())
    results = await asyncio.gather(
        one.put(WorldFile(fences=[fence("a", parent="b")])),
        two.put(WorldFile(fences=[fence("b", parent="a")])),
        return_exceptions=True,
    )
    (refused,) = [result for result in results if isinstance(result, InputError)]
    assert refused.reason == "cyclic_parents"
    fresh = WorldStore(redis)
    await fresh.refresh()
    assert fresh.problem is None
    assert fresh.current.version == 3


async def test_racing_changes_all_count(redis: Redis, world: WorldStore) -> None:
    """Processes that change the world at the same time check again instead of overwriting each other."""
    stores = [world, WorldStore(redis), WorldStore(redis)]
    puts = [each.put(WorldFile(fences=[fence(f"f{n}-{m}")])) for n, each in enumerate(stores) for m in range(4)]
    versions = await asyncio.gather(*puts)
    assert sorted(versions) == list(range(2, 14))
    await world.refresh()
    assert len(world.current.items.fences) == len(WORLD.fences) + 12


async def test_the_guard_is_asked_about_the_version_that_was_checked(redis: Redis, world: WorldStore) -> None:
    """A writer that was overtaken after its guard passed is refused, and asked again."""
    other = WorldStore(redis)
    asked = []

    async def guard() -> None:
        asked.append(world.current.version)
        if len(asked) == 2:
            raise Fenced("overtaken")
        await other.put(WorldFile(fences=[msgspec.structs.replace(fence("x"), name="new")]))

    with pytest.raises(Fenced):
        await world.apply(WorldFile(fences=[msgspec.structs.replace(fence("x"), name="old")]), [], guard)
    assert asked == [1, 2]
    await other.refresh()
    assert [each.name for each in other.current.items.fences if each.id == "x"] == ["new"]


async def test_stock_alone_is_no_change_of_the_world(
    redis: Redis, world: WorldStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stock is written without building anything, and no process has to load the world for it."""
    monkeypatch.setattr("server.world.build", lambda *_: 1 / 0)
    assert await world.put(WorldFile(stock=[BEANS])) == 1
    assert await stocked(world, "beans") == 7
    assert await redis.get(keys.world_version()) == b"1"
    for unknown in (Stock(store="nowhere", sku="beans", quantity=1), Stock(store="graben", sku="tea", quantity=1)):
        with pytest.raises(InputError, match="does not exist"):
            await world.put(WorldFile(stock=[BEANS, unknown]))
        assert await stocked(world, unknown.sku, unknown.store) is None


async def test_a_change_is_built_once(redis: Redis, world: WorldStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The snapshot that a change was checked with is the one that is used."""
    built = []

    def counting(version: int, items: WorldFile, previous: World | None = None) -> World:
        built.append(version)
        return build(version, items, previous)

    monkeypatch.setattr("server.world.build", counting)
    await world.put(WorldFile(products=[TEA], stock=[Stock(store="graben", sku="tea", quantity=1)]))
    await world.remove("product", "gone")
    await world.refresh()
    assert built == [2, 3]
    assert await redis.get(keys.world_version()) == b"3"


@pytest.mark.parametrize(
    ("items", "reason"),
    [
        (WorldFile(fences=[fence("a", parent="b"), fence("b", parent="a")]), "cyclic_parents"),
        (
            WorldFile(
                fences=[
                    Fence(
                        id="bow-tie",
                        store="graben",
                        kind="shelf",
                        geometry=Polygon([[(0.0, 0.0), (1.0, 1.0), (1.0, 0.0), (0.0, 1.0), (0.0, 0.0)]]),
                    )
                ]
            ),
            "invalid_geometry",
        ),
        (
            WorldFile(promotions=[msgspec.structs.replace(PROMISE, what=What(), words={"en": Words(title="{{ x }}")})]),
            "broken_template",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_what_cannot_be_used_is_refused(redis: Redis, world: WorldStore, items: WorldFile, reason: str) -> None:
    """A change that would make the world unusable is refused as a whole, whichever way it comes."""
    good = msgspec.structs.replace(items, products=[TEA])
    for attempt in (world.put(good), world.apply(good, [])):
        with pytest.raises(InputError) as refused:
            await attempt
        assert refused.value.reason == reason
    assert await redis.get(keys.world_version()) == b"1"
    assert "tea" not in world.current.catalogue.products


CYCLE = {("fence", each.id): msgspec.json.encode(each) for each in (fence("a", parent="b"), fence("b", parent="a"))}
UNREADABLE = {("promotion", "odd"): b'{"id":"odd","from":"a newer release"}'}


@pytest.mark.parametrize(("rows", "named"), [(CYCLE, "fence a"), (UNREADABLE, "promotion 'odd'")])
async def test_a_stored_world_that_cannot_be_built(
    redis: Redis,
    world: WorldStore,
    rows: dict[tuple[str, str], bytes],
    named: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The last good world stays, the problem is named once, stock and changes are still taken, and a repair ends it."""
    for (kind, name), row in rows.items():
        await redis.hset(keys.world(kind), name, row)
    await redis.incr(keys.world_version())
    fresh = WorldStore(redis)
    for each in (world, fresh, fresh):
        await each.refresh()
        assert named in str(each.problem)
    assert len([line for line in caplog.messages if named in line]) == 2
    assert (world.current.version, fresh.current.version) == (1, 0)

    await fresh.put(WorldFile(stock=[BEANS]))
    assert await stocked(fresh, "beans") == 7
    await fresh.put(WorldFile(products=[TEA]))
    with pytest.raises(InputError, match="its own ancestor"):
        await fresh.put(WorldFile(fences=[fence("c", parent="c")]))
    await fresh.remove("product", "gone")
    with pytest.raises(NotFound):
        await fresh.remove("product", "gone")
    assert fresh.problem is not None

    (kind, name), *_ = rows
    await fresh.remove(kind, name) if kind == "promotion" else await fresh.put(WorldFile(fences=[fence("a")]))  # type: ignore[arg-type]
    await world.refresh()
    for each in (world, fresh):
        assert each.problem is None
        assert each.current.version == 5
        assert "tea" in each.current.catalogue.products
        assert "gone" not in each.current.catalogue.products


async def test_following_survives_a_broken_world(redis: Redis, world: WorldStore) -> None:
    """The task that follows changes goes on through a world that can't be built, up to the next good one."""
    following = asyncio.create_task(world.run())
    try:
        await redis.hset(keys.world("store"), "x", b"\xff")
        await redis.incr(keys.world_version())
        async with asyncio.timeout(10):
            while world.problem is None:
                await asyncio.sleep(0.02)
        await WorldStore(redis).remove("store", "x")
        async with asyncio.timeout(10):
            while world.current.version != 3:
                await asyncio.sleep(0.02)
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
    assert world.problem is None


async def test_hours_of_fences_reach_who_asks_for_them(world: WorldStore) -> None:
    """The catalogue has the hours of a fence and of all in it, displays too; the index has their store's time zone."""
    hours = [OpenHours(weekday=4, opens=1080, closes=120)]
    bar = msgspec.structs.replace(fence("bar"), hours=hours)
    gin = Product(
        sku="gin", name="Gin", segment="drinks", displays=[Display(store="graben", lat=LAT, lng=LNG, parent="stool")]
    )
    before = world.current.catalogue
    assert before.fence_hours == {}
    await world.put(WorldFile(fences=[bar, fence("stool", parent="bar"), fence("hall")], products=[gin]))
    catalogue, fences = world.current.catalogue, world.current.fences
    assert catalogue.fence_hours == {name: Timetable(hours) for name in ("bar", "stool", "graben:gin:0")}
    assert str(fences.zones[StoreId("graben")]) == world.current.items.stores[0].time_zone
    await world.put(WorldFile(fences=[msgspec.structs.replace(bar, hours=[])]))
    assert world.current.catalogue.fence_hours["stool"] == Timetable([])
    assert world.current.catalogue.version not in (before.version, catalogue.version)


async def test_special_days_reach_who_asks_for_them(world: WorldStore) -> None:
    """A store's take time from the hours of its fences, as the catalogue and the index tell; a fence's own replace."""
    christmas, hours = [SpecialDay(date(2026, 12, 25))], [OpenHours(weekday=4, opens=1080, closes=120)]
    graben = msgspec.structs.replace(world.current.items.stores[0], special_days=christmas)
    bar = msgspec.structs.replace(fence("bar"), hours=hours)
    hall = msgspec.structs.replace(fence("hall"), special_days=christmas)
    await world.put(WorldFile(stores=[graben], fences=[bar, hall, fence("yard")]))
    assert world.current.catalogue.fence_hours == {
        "bar": Timetable(hours, narrowed_by=christmas),
        "hall": Timetable(None, christmas),
    }
    assert world.current.fences.rules[FenceId("bar")].narrowed_by == christmas
    before = world.current.catalogue.version
    await world.put(WorldFile(stores=[msgspec.structs.replace(graben, special_days=[])]))
    assert world.current.catalogue.fence_hours["bar"] == Timetable(hours)
    assert world.current.catalogue.version != before


async def test_a_fence_goes_into_one_of_its_store_and_wide_enough(world: WorldStore) -> None:
    """A parent of another store, of a narrower kind, or none at all is refused, and the world stays as it was."""
    ring = Store(id="ring", name="Ring", lat=LAT, lng=LNG)
    await world.put(WorldFile(stores=[ring], fences=[fence("a")]))
    for wrong, said in (
        (msgspec.structs.replace(fence("b", parent="a"), store="ring"), "its parent to 'graben'"),
        (msgspec.structs.replace(fence("b", parent="a"), kind="store"), "can't be in a department"),
        (fence("b", parent="z"), "parent 'z', which does not exist"),
    ):
        with pytest.raises(InputError, match=said) as refused:
            await world.put(WorldFile(fences=[wrong]))
        assert refused.value.reason == "unknown_reference"
    assert "b" not in world.current.fences.by_id
    await world.put(WorldFile(fences=[fence("b", parent="a")]))
    with pytest.raises(Conflict, match="still needed"):
        await world.remove("fence", "a")
