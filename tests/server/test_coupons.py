"""The coupon book, on a real store. Its whole life against a model is in test_coupon_life.py."""

import asyncio
import contextlib

import msgspec
import pytest
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from nearcast import keys
from nearcast.clock import ManualClock
from nearcast.errors import Conflict, Gone, InputError, NotFound, Unavailable
from nearcast.ids import CustomerId, DecisionId, PromotionId, Sku, StoreId
from nearcast.world import Discount
from server.coupons import KEEP_MS, AppliedOffer, Coupon, CouponBook, Redemption

GRABEN, RING = StoreId("graben"), StoreId("ring")
HOUR_MS = 3_600_000


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def book(redis: Redis, clock: ManualClock) -> CouponBook:
    return CouponBook(redis, b"a coupon secret", clock)


def offer_until(expires_ms: int, decision: str = "d-1") -> AppliedOffer:
    return AppliedOffer(
        customer=CustomerId("anna"),
        decision=DecisionId(decision),
        promotion=PromotionId("coffee"),
        expires_ms=expires_ms,
        store=GRABEN,
        sku=Sku("4711"),
        discount=Discount(percent=12.5),
    )


async def test_applying_again_is_the_same_coupon(book: CouponBook, clock: ManualClock) -> None:
    """One decision, one coupon: 50 at once and one later get the same, as it was first applied."""
    offer = offer_until(clock.now_ms() + HOUR_MS)
    first, *others = await asyncio.gather(*(book.apply(offer) for _ in range(50)))
    assert all(other == first for other in others)
    assert (first.state, first.offer, first.applied_ms) == ("applied", offer, clock.now_ms())
    clock.advance(1_000)
    assert await book.apply(offer) == first
    assert (await book.apply(offer_until(clock.now_ms() + HOUR_MS, "d-2"))).code != first.code


async def test_applying_shows_the_present_state(book: CouponBook, clock: ManualClock) -> None:
    """A coupon that was redeemed stays redeemed when it is applied again: no second one comes to life."""
    coupon = await book.apply(offer_until(clock.now_ms() + HOUR_MS))
    redeemed = await book.redeem(coupon.code, GRABEN, "r-1")
    assert await book.apply(coupon.offer) == redeemed
    clock.advance(HOUR_MS)
    assert (await book.apply(coupon.offer)).state == "redeemed"


async def test_one_of_fifty_redeems(book: CouponBook, clock: ManualClock) -> None:
    """50 tills at once, each with its own redemption: one wins, 49 are told."""
    coupon = await book.apply(offer_until(clock.now_ms() + HOUR_MS))
    attempts = (book.redeem(coupon.code, GRABEN, f"r-{i}") for i in range(50))
    results = await asyncio.gather(*attempts, return_exceptions=True)
    refused = [result for result in results if isinstance(result, Conflict)]
    assert len(refused) == 49
    assert {error.reason for error in refused} == {"already_redeemed"}
    (winner,) = (result for result in results if not isinstance(result, BaseException))
    assert (await book.validate(coupon.code)) == winner


async def test_redemption_ids_belong_to_a_store(book: CouponBook, clock: ManualClock) -> None:
    """Tills of two stores may number their redemptions alike: the second store is not the first one's repetition."""
    coupon = await book.apply(offer_until(clock.now_ms() + HOUR_MS))
    await book.redeem(coupon.code, GRABEN, "1")
    with pytest.raises(Conflict):
        await book.redeem(coupon.code, RING, "1")


async def test_cancelled_before_it_arrived(book: CouponBook, clock: ManualClock) -> None:
    """A redemption called off before its request arrives stays called off; others are free to redeem."""
    coupon = await book.apply(offer_until(clock.now_ms() + HOUR_MS))
    await book.rollback(coupon.code, "r-1")
    with pytest.raises(Conflict) as refused:
        await book.redeem(coupon.code, GRABEN, "r-1")
    assert refused.value.reason == "redemption_rolled_back"
    assert (await book.redeem(coupon.code, GRABEN, "r-2")).redemption_id == "r-2"


async def test_repeating_a_success_after_the_end(book: CouponBook, clock: ManualClock) -> None:
    """A till that repeats its redemption after the coupon's end hears of its success, not of the end."""
    coupon = await book.apply(offer_until(clock.now_ms() + HOUR_MS))
    redeemed = await book.redeem(coupon.code, GRABEN, "r-1")
    clock.advance(HOUR_MS)
    assert await book.redeem(coupon.code, GRABEN, "r-1") == redeemed


async def test_typed_codes(book: CouponBook, clock: ManualClock) -> None:
    """Codes are forgiven case, dashes, spaces and look-alikes; what can't be a code is unknown."""
    coupon = await book.apply(offer_until(clock.now_ms() + HOUR_MS))
    typed = "-".join(coupon.code).lower().replace("0", "o").replace("1", "l")
    assert (await book.validate(typed)).code == coupon.code
    for code in ("", "0" * 20, "0" * 21, "ß" * 10, "*" * 20, "}" * 20, "\udc80" * 20):
        with pytest.raises(NotFound) as unknown:
            await book.validate(code)
        assert (unknown.value.reason, unknown.value.where) == ("unknown_coupon", "")


async def test_kept_for_a_while_after_its_end(book: CouponBook, redis: Redis, clock: ManualClock) -> None:
    """A coupon's record goes away by itself, a week after its end; whatever the till does in between."""
    coupon = await book.apply(offer_until(clock.now_ms() + 720 * HOUR_MS))
    await book.redeem(coupon.code, GRABEN, "r-1")
    left_ms = await redis.pttl(keys.coupon(coupon.code))
    assert KEEP_MS + 720 * HOUR_MS - 60_000 < left_ms <= KEEP_MS + 720 * HOUR_MS


async def test_remembered_as_long_as_the_decision_is(book: CouponBook, redis: Redis, clock: ManualClock) -> None:
    """A decision can be applied for 30 days, with a later end if its promotion was prolonged: until then its coupon is
    remembered, or it could be applied and redeemed anew.
    """
    coupon = await book.apply(offer_until(clock.now_ms() + HOUR_MS))
    await book.redeem(coupon.code, GRABEN, "r-1")
    clock.advance(30 * 24 * HOUR_MS)
    for name in (keys.coupon(coupon.code), keys.coupons_of("anna")):
        assert await redis.pttl(name) > 30 * 24 * HOUR_MS
    await book.apply(offer_until(clock.now_ms() + HOUR_MS, "d-2"))
    assert await redis.zscore(keys.coupons_of("anna"), coupon.code) is not None


async def test_forgetting(book: CouponBook, redis: Redis, clock: ManualClock) -> None:
    """After forgetting, the codes are unknown and nothing about the customer is left, however many there were."""
    coupons = [await book.apply(offer_until(clock.now_ms() + HOUR_MS, f"d-{n}")) for n in range(150)]
    await book.redeem(coupons[0].code, GRABEN, "r-1")
    assert await book.forget(CustomerId("anna")) == 150
    for coupon in coupons:
        with pytest.raises(NotFound):
            await book.validate(coupon.code)
    assert await redis.dbsize() == 0
    assert await book.forget(CustomerId("anna")) == 0


async def test_the_index_is_bounded_by_time(book: CouponBook, redis: Redis, clock: ManualClock) -> None:
    """It names the coupons that are still kept, and is gone when the last of them is."""
    index = keys.coupons_of("anna")
    first = await book.apply(offer_until(clock.now_ms() + 720 * HOUR_MS, "d-1"))
    second = await book.apply(offer_until(clock.now_ms() + 722 * HOUR_MS, "d-2"))
    assert await redis.zrange(index, 0, -1) == [first.code.encode(), second.code.encode()]
    left_ms = await redis.pttl(index)
    assert KEEP_MS + 722 * HOUR_MS - 60_000 < left_ms <= KEEP_MS + 722 * HOUR_MS
    clock.advance(KEEP_MS + 721 * HOUR_MS)
    third = await book.apply(offer_until(clock.now_ms() + HOUR_MS, "d-3"))
    assert await redis.zrange(index, 0, -1) == [second.code.encode(), third.code.encode()]


async def test_store_away(clock: ManualClock) -> None:
    """A store that can't be reached is `Unavailable`, not a crash."""
    async with Redis(host="127.0.0.1", port=1, retry=Retry(NoBackoff(), 0)) as nowhere:
        book = CouponBook(nowhere, b"s", clock)
        for attempt in (book.validate("0" * 20), book.forget(CustomerId("anna"))):
            with pytest.raises(Unavailable):
                await attempt


async def test_expired_before_applied(book: CouponBook, clock: ManualClock) -> None:
    """Applying at the end or later is too late, and leaves nothing."""
    with pytest.raises(Gone) as gone:
        await book.apply(offer_until(clock.now_ms()))
    assert gone.value.reason == "coupon_expired"


async def test_recalled_before_it_was_applied(book: CouponBook, clock: ManualClock) -> None:
    """A withdrawn offer can't be applied, now or later, and its code is unknown to tills."""
    offer = offer_until(clock.now_ms() + HOUR_MS)
    assert await book.withdraw(offer.decision)
    assert await book.withdraw(offer.decision)
    with pytest.raises(Gone) as recalled:
        await book.apply(offer)
    assert recalled.value.reason == "offer_recalled"
    with pytest.raises(NotFound):
        await book.validate(book.code_of(offer.decision))


async def test_recalled_after_it_was_applied(book: CouponBook, clock: ManualClock) -> None:
    """An applied coupon is the customer's: withdrawing says so and changes nothing, redeemed or not."""
    coupon = await book.apply(offer_until(clock.now_ms() + HOUR_MS))
    assert not await book.withdraw(coupon.offer.decision)
    assert await book.validate(coupon.code) == coupon
    redeemed = await book.redeem(coupon.code, GRABEN, "r-1")
    assert not await book.withdraw(coupon.offer.decision)
    assert await book.validate(coupon.code) == redeemed


async def test_applying_races_with_recalling(book: CouponBook, clock: ManualClock) -> None:
    """Whoever comes first: never a coupon of a withdrawn offer, never an offer withdrawn that was applied."""
    for n in range(100):
        offer = offer_until(clock.now_ms() + HOUR_MS, f"d-{n}")
        steps = [book.apply(offer), book.withdraw(offer.decision)]
        steps = steps if n % 2 else steps[::-1]
        said = await asyncio.gather(*steps, return_exceptions=True)
        withdrawn = True in said
        assert withdrawn != any(isinstance(each, Coupon) for each in said), said


async def test_the_wanderings_of_a_reservation(book: CouponBook, clock: ManualClock) -> None:
    """A reservation keeps other purchases away for its time and no longer; its own purchase redeems, or lets go."""
    coupon = await book.apply(offer_until(clock.now_ms() + HOUR_MS))
    held = await book.reserve(coupon.code, GRABEN, "r-1", hold_s=60)
    assert (held.state, held.redemption_id, held.held_until_ms) == ("reserved", "r-1", clock.now_ms() + 60_000)
    for attempt in (book.redeem(coupon.code, GRABEN, "r-2"), book.reserve(coupon.code, RING, "r-1")):
        with pytest.raises(Conflict) as refused:
            await attempt
        assert refused.value.reason == "reserved"
    clock.advance(59_999)
    assert (await book.validate(coupon.code)).state == "reserved"
    clock.advance(1)
    assert (await book.validate(coupon.code)).state == "applied"
    assert (await book.reserve(coupon.code, RING, "r-2")).held_store == RING
    assert (await book.release(coupon.code, RING, "r-2")).state == "applied"
    clock.advance(HOUR_MS - 70_000)
    # No longer than the coupon itself.
    assert (await book.reserve(coupon.code, RING, "r-3")).held_until_ms == coupon.offer.expires_ms
    assert (await book.redeem(coupon.code, RING, "r-3")).state == "redeemed"


async def test_reserved_while_in_the_store(book: CouponBook, clock: ManualClock) -> None:
    """Kept as long as the customer is in that store; free when they leave it, but not when they leave another one."""
    offer = offer_until(clock.now_ms() + 24 * HOUR_MS)
    coupon = await book.apply(offer)
    await book.reserve(coupon.code, GRABEN, "r-1", while_in_store=True)
    before_ms = clock.now_ms() - 1
    clock.advance(11 * HOUR_MS)
    assert await book.left_store(offer.customer, RING, clock.now_ms()) == 0
    # Of the visit before, heard of late.
    assert await book.left_store(offer.customer, GRABEN, before_ms) == 0
    assert (await book.validate(coupon.code)).while_in_store
    assert await book.left_store(offer.customer, GRABEN, clock.now_ms()) == 1
    assert await book.left_store(offer.customer, GRABEN, clock.now_ms()) == 0
    assert (await book.redeem(coupon.code, RING, "r-2")).state == "redeemed"


@pytest.mark.parametrize("exclusive_first", [True, False])
async def test_an_exclusive_coupon_is_alone(book: CouponBook, clock: ManualClock, exclusive_first: bool) -> None:
    """Whichever comes first into the purchase, reserved or redeemed; the refusal says what is in the way. After it is
    rolled back or released, the other one may.
    """
    alone = msgspec.structs.replace(offer_until(clock.now_ms() + HOUR_MS), exclusive=True)
    plain = msgspec.structs.replace(offer_until(clock.now_ms() + HOUR_MS, "d-2"), promotion=PromotionId("tea"))
    coupons = [await book.apply(alone), await book.apply(plain)]
    first, second = coupons if exclusive_first else coupons[::-1]
    await book.reserve(first.code, GRABEN, "r-1")
    for attempt in (book.reserve(second.code, GRABEN, "r-1"), book.redeem(second.code, GRABEN, "r-1")):
        with pytest.raises(Conflict, match=first.offer.promotion) as refused:
            await attempt
        assert refused.value.reason == "not_combinable"
    await book.redeem(first.code, GRABEN, "r-1")
    with pytest.raises(Conflict, match=first.offer.promotion):
        await book.redeem(second.code, GRABEN, "r-1")
    await book.rollback(first.code, "r-1", GRABEN)
    assert (await book.redeem(second.code, GRABEN, "r-1")).state == "redeemed"
    assert (await book.redeem(first.code, GRABEN, "r-2")).state == "redeemed"


async def test_one_of_a_group_in_a_purchase(book: CouponBook, clock: ManualClock) -> None:
    """30 coupons of one group and 5 others at once in one purchase: the 5 and one of the group get in, every time."""
    for purchase in range(5):
        offers = [
            msgspec.structs.replace(
                offer_until(clock.now_ms() + HOUR_MS, f"d-{purchase}-{n}"), group="coffee" if n < 30 else None
            )
            for n in range(35)
        ]
        codes = [(await book.apply(offer)).code for offer in offers]
        said = await asyncio.gather(
            *(book.redeem(code, GRABEN, f"r-{purchase}") for code in codes), return_exceptions=True
        )
        assert [isinstance(each, Coupon) for each in said[30:]] == [True] * 5
        assert sum(isinstance(each, Coupon) for each in said[:30]) == 1
        assert {each.reason for each in said if isinstance(each, InputError)} == {"not_combinable"}


async def test_a_purchase_has_so_many_coupons(book: CouponBook, clock: ManualClock) -> None:
    """50 at most, so that looking at them all stays quick."""
    codes = [(await book.apply(offer_until(clock.now_ms() + HOUR_MS, f"d-{n}"))).code for n in range(51)]
    for code in codes[:50]:
        await book.redeem(code, GRABEN, "r-1")
    with pytest.raises(Conflict) as refused:
        await book.redeem(codes[50], GRABEN, "r-1")
    assert refused.value.reason == "too_many_in_purchase"


async def test_terms(book: CouponBook, clock: ManualClock) -> None:
    """Only at its store, only for purchases that are big enough, where the till says how big they are."""
    offer = msgspec.structs.replace(offer_until(clock.now_ms() + HOUR_MS), this_store=True, min_purchase_cents=1_000)
    coupon = await book.apply(offer)
    with pytest.raises(Conflict) as elsewhere:
        await book.redeem(coupon.code, RING, "r-1", revenue_cents=1_000)
    with pytest.raises(Conflict, match="1000 cents") as little:
        await book.redeem(coupon.code, GRABEN, "r-1", revenue_cents=999)
    assert (elsewhere.value.reason, little.value.reason) == ("other_store", "below_minimum")
    redeemed = await book.redeem(coupon.code, GRABEN, "r-1", revenue_cents=1_000, discount_cents=150)
    assert (redeemed.revenue_cents, redeemed.discount_cents) == (1_000, 150)


@pytest.mark.parametrize("stores", [(GRABEN, None), (None, GRABEN)])
async def test_what_was_rolled_back(
    book: CouponBook, clock: ManualClock, stores: tuple[StoreId | None, StoreId | None]
) -> None:
    """Rolling back says what had been redeemed, every time it is repeated, with the store or without, also when another
    purchase has redeemed it by then; nothing if nothing had been.
    """
    coupon = await book.apply(offer_until(clock.now_ms() + HOUR_MS))
    assert (await book.rollback(coupon.code, "r-0"))[1] is None
    await book.redeem(coupon.code, GRABEN, "r-1", revenue_cents=1_000, discount_cents=150)
    with pytest.raises(Conflict):
        await book.rollback(coupon.code, "r-1", RING)
    expected = Redemption(redemption_id="r-1", revenue_cents=1_000, discount_cents=150, store=GRABEN)
    for store in (stores[0], stores[0], stores[1], stores[1]):
        now, was = await book.rollback(coupon.code, "r-1", store)
        assert (now.state, now.revenue_cents) == ("applied", None)
        assert was == expected
    with pytest.raises(Conflict):
        await book.redeem(coupon.code, GRABEN, "r-1")
    second = await book.apply(offer_until(clock.now_ms() + HOUR_MS, "d-2"))
    await book.redeem(second.code, GRABEN, "r-1", revenue_cents=1_000, discount_cents=150)
    await book.rollback(second.code, "r-1", stores[0])
    await book.redeem(second.code, RING, "r-2")
    assert (await book.rollback(second.code, "r-1", stores[1]))[1] == expected
    assert (await book.validate(second.code)).redemption_id == "r-2"


async def test_rolled_back_too_often(book: CouponBook, redis: Redis, clock: ManualClock) -> None:
    """After a hundred redemptions that were called off a coupon is good for none, and its record grows no more."""
    coupon = await book.apply(offer_until(clock.now_ms() + HOUR_MS))
    await book.redeem(coupon.code, GRABEN, "first")
    for n in range(99):
        if n == 50:
            await book.rollback(coupon.code, "first")
        with contextlib.suppress(Conflict):
            await book.rollback(coupon.code, f"r-{n}")
    assert (await book.reserve(coupon.code, GRABEN, "r")).state == "reserved"
    await book.release(coupon.code, GRABEN, "r")
    for n in range(99, 160):
        await book.rollback(coupon.code, f"r-{n}")
    size = await redis.hlen(keys.coupon(coupon.code))
    await book.rollback(coupon.code, "one more")
    assert await redis.hlen(keys.coupon(coupon.code)) == size
    for attempt in (book.reserve(coupon.code, GRABEN, "r"), book.redeem(coupon.code, GRABEN, "one more")):
        with pytest.raises(Conflict) as refused:
            await attempt
        assert refused.value.reason == "too_many_rolled_back"


async def test_coupons_from_before_there_were_terms(book: CouponBook, redis: Redis, clock: ManualClock) -> None:
    """A record that an older release wrote can be redeemed, rolled back and forgotten."""
    offer = offer_until(clock.now_ms() + HOUR_MS)
    code = book.code_of(offer.decision)
    old = {"offer": msgspec.json.encode(offer), "state": "applied", "applied_ms": clock.now_ms()}
    await redis.hset(keys.coupon(code), mapping={**old, "expires_ms": offer.expires_ms})
    await redis.pexpire(keys.coupon(code), KEEP_MS)
    await redis.zadd(keys.coupons_of(offer.customer), {code: offer.expires_ms + KEEP_MS})
    assert (await book.reserve(code, GRABEN, "r-1")).state == "reserved"
    assert (await book.redeem(code, GRABEN, "r-1")).state == "redeemed"
    assert (await book.rollback(code, "r-1"))[0].state == "applied"
    assert await book.forget(offer.customer) == 1
    assert await redis.dbsize() == 0
