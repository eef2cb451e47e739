"""The coupon book, on a real store."""

import asyncio

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from nearcast import keys
from nearcast.clock import ManualClock
from nearcast.errors import Conflict, Gone, InputError, NotFound, Unavailable
from nearcast.ids import CustomerId, DecisionId, PromotionId, Sku, StoreId
from nearcast.world import Discount
from server.coupons import KEEP_MS, AppliedOffer, Coupon, CouponBook

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
    coupon = await book.apply(offer_until(clock.now_ms() + HOUR_MS))
    await book.redeem(coupon.code, GRABEN, "r-1")
    left_ms = await redis.pttl(keys.coupon(coupon.code))
    assert KEEP_MS + HOUR_MS - 60_000 < left_ms <= KEEP_MS + HOUR_MS


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
    first = await book.apply(offer_until(clock.now_ms() + HOUR_MS, "d-1"))
    second = await book.apply(offer_until(clock.now_ms() + 3 * HOUR_MS, "d-2"))
    assert await redis.zrange(index, 0, -1) == [first.code.encode(), second.code.encode()]
    left_ms = await redis.pttl(index)
    assert KEEP_MS + 3 * HOUR_MS - 60_000 < left_ms <= KEEP_MS + 3 * HOUR_MS
    clock.advance(KEEP_MS + 2 * HOUR_MS)
    third = await book.apply(offer_until(clock.now_ms() + HOUR_MS, "d-3"))
    assert await redis.zrange(index, 0, -1) == [second.code.encode(), third.code.encode()]


async def test_store_away(clock: ManualClock) -> None:
    """A store that can't be reached is `Unavailable`, not a crash."""
    async with Redis(host="127.0.0.1", port=1, retry=Retry(NoBackoff(), 0)) as nowhere:
        book = CouponBook(nowhere, b"s", clock)
        for attempt in (book.validate("0" * 20), book.forget(CustomerId("anna"))):
            with pytest.raises(Unavailable):
                await attempt


class _Model:
    """The state machine as the documentation tells it, one step at a time: the oracle."""

    def __init__(self, expires_ms: int) -> None:
        self.expires_ms = expires_ms
        self.exists = False
        self.holder: tuple[str, str] | None = None
        self.void: set[str] = set()

    def step(self, step: str, store: str, redemption: str, now_ms: int) -> str:
        late = now_ms >= self.expires_ms
        if step == "apply" and not self.exists:
            self.exists = not late
            return self.state(now_ms) if self.exists else "coupon_expired"
        if not self.exists:
            return "unknown_coupon"
        if step == "redeem" and self.holder != (redemption, store):
            if self.holder:
                return "already_redeemed"
            if redemption in self.void:
                return "redemption_rolled_back"
            if late:
                return "coupon_expired"
            self.holder = (redemption, store)
        if step == "rollback" and redemption not in self.void:
            if self.holder and self.holder[0] != redemption:
                return "already_redeemed"
            self.void.add(redemption)
            self.holder = None
        return self.state(now_ms)

    def state(self, now_ms: int) -> str:
        return "redeemed" if self.holder else "expired" if now_ms >= self.expires_ms else "applied"


_STEPS = st.tuples(
    st.sampled_from(["apply", "validate", "redeem", "redeem", "rollback"]),
    st.sampled_from([GRABEN, RING]),
    st.sampled_from(["r-1", "r-2"]),
    st.sampled_from([0, 0, 0, 0, 40_000]),
)


async def _take(book: CouponBook, step: str, offer: AppliedOffer, store: StoreId, redemption: str) -> Coupon:
    code = book.code_of(offer.decision)
    match step:
        case "apply":
            return await book.apply(offer)
        case "redeem":
            return await book.redeem(code, store, redemption)
        case "rollback":
            return await book.rollback(code, redemption)
        case _:
            return await book.validate(code)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(steps=st.lists(_STEPS, max_size=12))
async def test_state_machine(redis: Redis, steps: list[tuple[str, StoreId, str, int]]) -> None:
    """Any sequence of steps, repeated and late ones too, goes as the model says."""
    await redis.flushdb()
    clock = ManualClock()
    book = CouponBook(redis, b"s", clock)
    offer = offer_until(clock.now_ms() + 100_000)
    model = _Model(offer.expires_ms)
    for step, store, redemption, wait_ms in steps:
        clock.advance(wait_ms)
        try:
            coupon = await _take(book, step, offer, store, redemption)
        except InputError as error:
            result = error.reason
        else:
            result = coupon.state
            assert coupon.offer == offer
            assert (coupon.redemption_id is None) == (coupon.state != "redeemed")
        assert result == model.step(step, store, redemption, clock.now_ms())


async def test_expired_before_applied(book: CouponBook, clock: ManualClock) -> None:
    """Applying at the end or later is too late, and leaves nothing."""
    with pytest.raises(Gone) as gone:
        await book.apply(offer_until(clock.now_ms()))
    assert gone.value.reason == "coupon_expired"
