"""Guessing, hoarding and impossible journeys: what the guard refuses, on a real store."""

import asyncio

import pytest
from prometheus_client import REGISTRY
from redis.asyncio import Redis

from nearcast.clock import ManualClock
from nearcast.errors import Conflict, NotFound, TooManyRequests
from nearcast.ids import CustomerId, DecisionId, PromotionId, StoreId
from server.coupon_guard import Guard, asker
from server.coupons import AppliedOffer, Coupon, CouponBook

HOUR_MS = 3_600_000
#: Vienna, ten minutes' drive from there, Graz (145 km away as the crow flies), and Auckland, across the date line.
PLACES = {
    "graben": (48.2087, 16.3695),
    "ring": (48.2010, 16.3600),
    "graz": (47.0707, 15.4395),
    "auckland": (-36.8485, 174.7633),
    "samoa": (-13.8333, -171.7667),
}
GRABEN, RING, GRAZ, AUCKLAND, SAMOA = (StoreId(name) for name in PLACES)
GUARD = Guard(most_unknown=5, unknown_window_s=600, applies_per_hour=4, redemptions_per_hour=3, most_km_per_h=300)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def book(redis: Redis, clock: ManualClock) -> CouponBook:
    return book_with(redis, clock, GUARD)


def book_with(redis: Redis, clock: ManualClock, guard: Guard) -> CouponBook:
    return CouponBook(redis, b"a coupon secret", clock, guard=guard, places=lambda store: PLACES.get(store))


async def apply(book: CouponBook, clock: ManualClock, n: int, customer: str = "anna") -> Coupon:
    return await book.apply(
        AppliedOffer(
            customer=CustomerId(customer),
            decision=DecisionId(f"d-{customer}-{n}"),
            promotion=PromotionId("coffee"),
            expires_ms=clock.now_ms() + 48 * HOUR_MS,
        )
    )


def locked_out() -> float:
    return REGISTRY.get_sample_value("nearcast_coupons_total", {"step": "validate", "result": "locked_out"}) or 0.0


async def test_guessing(book: CouponBook, clock: ManualClock) -> None:
    """After so many unknown codes a key hears nothing at that store, of real codes neither, until the window is over;
    others go on, and it is counted.
    """
    coupon = await apply(book, clock, 1)
    before = locked_out()
    who, elsewhere = asker("k", GRABEN, PLACES.get), asker("k", RING, PLACES.get)
    for code in ("0" * 20, "nonsense", "a.b.c", "}", "1" * 20):
        assert (await book.validate(coupon.code, asker=who)).code == coupon.code
        with pytest.raises(NotFound) as unknown:
            await book.validate(code, asker=who)
        assert unknown.value.detail == "there is no coupon with this code"
        clock.advance(10_000)
    for code in ("2" * 20, coupon.code):
        with pytest.raises(TooManyRequests) as locked:
            await book.validate(code, asker=who)
        assert (locked.value.reason, locked.value.retry_after_s) == ("too_many_unknown_codes", 550)
    with pytest.raises(TooManyRequests):
        await book.redeem(coupon.code, GRABEN, "r-1", asker=who)
    assert locked_out() == before + 2
    assert (await book.validate(coupon.code, asker=elsewhere)).code == coupon.code
    clock.advance(550_000)
    assert (await book.validate(coupon.code, asker=who)).code == coupon.code


async def test_guessing_at_once(book: CouponBook, redis: Redis) -> None:
    """Of 50 guesses at the same time, over two processes, five are looked at."""
    other = CouponBook(redis, b"a coupon secret", ManualClock(), guard=GUARD)
    guesses = [each.validate(f"{n:020}", asker="k") for n in range(25) for each in (book, other)]
    said = await asyncio.gather(*guesses, return_exceptions=True)
    assert sum(isinstance(each, NotFound) for each in said) == 5
    assert sum(isinstance(each, TooManyRequests) for each in said) == 45


def test_made_up_stores_count_as_one() -> None:
    """A new store's name for each guess is no way around it; keys, and known stores, are counted apart."""
    assert asker("k", "made-up", PLACES.get) == asker("k", "made-up-2", PLACES.get) == asker("k", None, PLACES.get)
    askers = {asker(key, store, PLACES.get) for key in ("k", "l") for store in (GRABEN, RING, None)}
    assert len(askers) == 6


async def test_as_many_round_trips_for_each(book: CouponBook, redis: Redis, clock: ManualClock) -> None:
    """A code that is known, one that isn't, one that can't be and a forged token take one command each."""
    coupon = await apply(book, clock, 1)
    forged = CouponBook(redis, b"another secret", clock).token_of(coupon)

    async def commands(code: str) -> int:
        before = (await redis.info("commandstats")).get("cmdstat_evalsha", {"calls": 0})["calls"]
        await asyncio.gather(book.validate(code, asker="k"), return_exceptions=True)
        return int((await redis.info("commandstats"))["cmdstat_evalsha"]["calls"]) - before

    assert [await commands(code) for code in (coupon.code, "0" * 20, "nonsense", forged)] == [1, 1, 1, 1]


async def test_applying_too_many(book: CouponBook, clock: ManualClock) -> None:
    """Four in any hour; applying an old one again doesn't count, and another customer is free."""
    for n in range(4):
        await apply(book, clock, n)
        clock.advance(60_000)
    await apply(book, clock, 0)
    with pytest.raises(TooManyRequests) as many:
        await apply(book, clock, 4)
    assert (many.value.reason, many.value.retry_after_s) == ("too_many_applied", 3_600 - 240)
    await apply(book, clock, 4, "bob")
    clock.advance(HOUR_MS - 240_000)
    await apply(book, clock, 4)


async def test_redeeming_too_many(book: CouponBook, clock: ManualClock) -> None:
    """Three in any hour; one that is rolled back doesn't count, a repetition is no new one."""
    coupons = [await apply(book, clock, n) for n in range(4)]
    for n in range(3):
        await book.redeem(coupons[n].code, GRABEN, f"r-{n}")
        clock.advance(40_000)
    with pytest.raises(TooManyRequests) as many:
        await book.redeem(coupons[3].code, GRABEN, "r-3")
    assert (many.value.reason, many.value.retry_after_s) == ("too_many_redeemed", 3_600 - 120)
    assert (await book.redeem(coupons[2].code, GRABEN, "r-2")).state == "redeemed"
    await book.rollback(coupons[0].code, "r-0")
    await book.redeem(coupons[3].code, GRABEN, "r-3")
    clock.advance(HOUR_MS)
    await book.redeem(coupons[0].code, GRABEN, "r-4")


@pytest.mark.parametrize(
    ("here", "there", "hours"), [(GRABEN, GRAZ, 145 / 300), (GRABEN, RING, 1.1 / 300), (AUCKLAND, SAMOA, 2_887 / 300)]
)
async def test_too_fast(
    book: CouponBook, redis: Redis, clock: ManualClock, here: StoreId, there: StoreId, hours: float
) -> None:
    """Nobody is at two stores within less time than the way takes at 300 km/h; a little later they may be."""
    first, second = await apply(book, clock, 1), await apply(book, clock, 2)
    await book.redeem(first.code, here, "r-1")
    clock.advance(round(hours * HOUR_MS * 0.95))
    with pytest.raises(Conflict) as fast:
        await book.redeem(second.code, there, "r-2")
    assert fast.value.reason == "too_fast"
    assert (await book.redeem(second.code, here, "r-3")).state == "redeemed"
    await book.rollback(second.code, "r-3")
    clock.advance(round(hours * HOUR_MS * 0.1))
    assert (await book.redeem(second.code, there, "r-4")).state == "redeemed"


async def test_what_is_off(redis: Redis, clock: ManualClock) -> None:
    """With every bound 0, and at stores that nobody knows, nothing is refused."""
    book = book_with(redis, clock, Guard())
    coupons = [await apply(book, clock, n) for n in range(10)]
    for n, coupon in enumerate(coupons):
        await book.redeem(coupon.code, (GRABEN, GRAZ)[n % 2], f"r-{n}")
    for n in range(20):
        with pytest.raises(NotFound):
            await book.validate(f"{n:020}", asker="k")
    guarded = book_with(redis, clock, Guard(most_km_per_h=300))
    away = await apply(guarded, clock, 11)
    assert (await guarded.redeem(away.code, StoreId("nowhere"), "r-x")).state == "redeemed"
