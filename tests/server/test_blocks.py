"""Blocks of coupons for offline tills, on a real store."""

import asyncio
import random

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from nearcast.clock import ManualClock
from nearcast.coupons import OfflineRedemption, hash_of
from nearcast.errors import Conflict, NotFound, TooManyRequests
from nearcast.ids import CustomerId, DecisionId, PromotionId, StoreId
from server.blocks import GRACE_S, Blocks
from server.coupon_guard import Guard
from server.coupons import AppliedOffer, Coupon, CouponBook

GRABEN, RING = StoreId("graben"), StoreId("ring")
HOUR_MS = 3_600_000


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def book(redis: Redis, clock: ManualClock) -> CouponBook:
    return CouponBook(redis, b"a coupon secret", clock)


@pytest.fixture
def blocks(redis: Redis, book: CouponBook, clock: ManualClock) -> Blocks:
    return Blocks(redis, book, clock)


async def apply(book: CouponBook, clock: ManualClock, n: int, **terms: object) -> Coupon:
    offer = AppliedOffer(
        customer=CustomerId("anna"),
        decision=DecisionId(f"d-{n}"),
        promotion=PromotionId("coffee"),
        expires_ms=clock.now_ms() + 10 * HOUR_MS,
        store=GRABEN,
    )
    return await book.apply(msgspec.structs.replace(offer, **terms))


def made(coupon: Coupon, redemption: str, clock: ManualClock) -> OfflineRedemption:
    return OfflineRedemption(code=coupon.code, redemption_id=redemption, at_ms=clock.now_ms())


async def test_the_newest_that_can_be_redeemed(book: CouponBook, blocks: Blocks, clock: ManualClock) -> None:
    """Of the store's coupons the ones applied last; none that is redeemed, reserved, expired, of another store or in
    another block.
    """
    coupons = []
    for n in range(12):
        clock.advance(1_000)
        coupons.append(await apply(book, clock, n))
    await apply(book, clock, 100, store=RING)
    await apply(book, clock, 101, store=None)
    await apply(book, clock, 102, expires_ms=clock.now_ms() + 1)
    clock.advance(1)
    await book.redeem(coupons[11].code, RING, "r-1")
    await book.reserve(coupons[10].code, GRABEN, "r-2")
    first = await blocks.take("b-1", GRABEN, 600, 3)
    assert {each.hash for each in first.coupons} == {hash_of(each.code) for each in coupons[7:10]}
    second = await blocks.take("b-2", GRABEN, 600, 100)
    assert {each.hash for each in second.coupons} == {hash_of(each.code) for each in coupons[:7]}
    assert await blocks.take("b-1", GRABEN, 60, 100) == first
    with pytest.raises(Conflict):
        await blocks.take("b-1", RING, 600, 3)


async def test_rolled_back_and_handed_out(book: CouponBook, blocks: Blocks, clock: ManualClock) -> None:
    """A coupon that was redeemed when a block was taken is in a later one once that was rolled back."""
    coupon = await apply(book, clock, 1)
    await book.redeem(coupon.code, RING, "r-1")
    assert (await blocks.take("b-1", GRABEN, 600, 10)).coupons == []
    await book.rollback(coupon.code, "r-1")
    assert [each.hash for each in (await blocks.take("b-2", GRABEN, 600, 10)).coupons] == [hash_of(coupon.code)]


async def test_not_in_the_block(book: CouponBook, blocks: Blocks, clock: ManualClock) -> None:
    """A coupon that was never handed out is not merged, whatever the till says; it stays as good as it was."""
    await apply(book, clock, 1)
    block = await blocks.take("b-1", GRABEN, 600, 10)
    later = await apply(book, clock, 2)
    [merged] = await blocks.merge(block.block, [made(later, "r-1", clock)])
    assert (merged.verdict.verdict, merged.coupon) == ("not_in_block", None)
    assert (await book.redeem(later.code, RING, "r-2")).state == "redeemed"
    for step in (blocks.merge("b-2", []), blocks.close("b-2")):
        with pytest.raises(NotFound):
            await step


async def test_two_blocks_at_once(book: CouponBook, redis: Redis, clock: ManualClock) -> None:
    """However many are taken at the same time, no coupon is in two of them."""
    coupons = [await apply(book, clock, n) for n in range(40)]
    takers = [Blocks(redis, book, clock) for _ in range(8)]
    taken = await asyncio.gather(*(each.take(f"b-{n}", GRABEN, 600, 10) for n, each in enumerate(takers)))
    hashes = [each.hash for block in taken for each in block.coupons]
    assert sorted(hashes) == sorted(hash_of(coupon.code) for coupon in coupons)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10**6), sold=st.sets(st.integers(0, 9)), elsewhere=st.sets(st.integers(0, 9)))
async def test_partial_merges(redis: Redis, seed: int, sold: set[int], elsewhere: set[int]) -> None:
    """What was sold offline is merged late, in parts, in any order and again and again, while others redeem online:
    each coupon is redeemed once, by whoever came first, and every verdict says who that was.
    """
    await redis.flushdb()
    clock = ManualClock()
    book = CouponBook(redis, b"s", clock)
    blocks = Blocks(redis, book, clock)
    coupons = [await apply(book, clock, n) for n in range(10)]
    await blocks.take("b-1", GRABEN, 600, 100)
    offline = [made(coupons[n], f"off-{n}", clock) for n in sorted(sold)]
    clock.advance(round((600 + GRACE_S) * 1000))
    chance = random.Random(seed)
    parts = [chance.sample(offline, chance.randint(0, len(offline))) for _ in range(3)] + [offline]

    async def online(n: int) -> None:
        await asyncio.gather(book.redeem(coupons[n].code, RING, f"on-{n}"), return_exceptions=True)

    answers = await asyncio.gather(*(blocks.merge("b-1", part) for part in parts), *(online(n) for n in elsewhere))
    verdicts: dict[str, set[str]] = {}
    for merged in answers[: len(parts)]:
        assert merged is not None
        for each in merged:
            verdicts.setdefault(each.verdict.redemption_id, set()).add(each.verdict.verdict)
    for n, coupon in enumerate(coupons):
        now = await book.validate(coupon.code)
        if n not in sold | elsewhere:
            assert now.state == "applied"
            continue
        assert now.redemption_id in ([f"off-{n}"] if n in sold else []) + ([f"on-{n}"] if n in elsewhere else [])
        if n in sold:
            mine = now.redemption_id == f"off-{n}"
            assert verdicts[f"off-{n}"] == {"redeemed" if mine else "already_redeemed"}


async def test_no_guessing_by_merging(redis: Redis, clock: ManualClock) -> None:
    """A merge of made-up codes runs into the same lock-out as a till that types them."""
    book = CouponBook(redis, b"s", clock, guard=Guard(most_unknown=5))
    blocks = Blocks(redis, book, clock)
    await apply(book, clock, 1)
    await blocks.take("b-1", GRABEN, 600, 10)
    guesses = [OfflineRedemption(code=f"{n:020}", redemption_id="r", at_ms=1) for n in range(20)]
    with pytest.raises(TooManyRequests):
        await blocks.merge("b-1", guesses, asker="k")
