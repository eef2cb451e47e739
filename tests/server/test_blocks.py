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
from nearcast.errors import Conflict, NotFound
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


async def test_taken_again(book: CouponBook, blocks: Blocks, clock: ManualClock) -> None:
    """Without what was redeemed meanwhile, or is in another block; closed, it isn't handed out again: its coupons may
    be redeemed anywhere.
    """
    coupons = [await apply(book, clock, n) for n in range(3)]
    await blocks.take("b-1", GRABEN, 600, 10)
    await blocks.merge("b-1", [made(coupons[0], "r-1", clock)])
    rest = [hash_of(coupon.code) for coupon in coupons[1:]]
    assert sorted(each.hash for each in (await blocks.take("b-1", GRABEN, 600, 10)).coupons) == sorted(rest)
    clock.advance(2 * HOUR_MS)
    await blocks.take("b-2", GRABEN, 600, 10)
    assert (await blocks.take("b-1", GRABEN, 600, 10)).coupons == []
    await blocks.close("b-1")
    with pytest.raises(Conflict) as closed:
        await blocks.take("b-1", GRABEN, 600, 10)
    assert closed.value.reason == "block_closed"


async def test_what_others_have_meanwhile(book: CouponBook, blocks: Blocks, clock: ManualClock) -> None:
    """A redemption that is merged late counts although the coupon is in the next block, or reserved elsewhere, by then:
    it has happened. They are told that it is gone.
    """
    coupons = [await apply(book, clock, n) for n in range(2)]
    await blocks.take("b-1", GRABEN, 600, 10)
    offline = [made(coupon, f"off-{n}", clock) for n, coupon in enumerate(coupons)]
    clock.advance(2 * HOUR_MS)
    await book.reserve(coupons[0].code, RING, "on")
    assert len((await blocks.take("b-2", GRABEN, 600, 10)).coupons) == 1
    for _ in range(2):
        assert [each.verdict.verdict for each in await blocks.merge("b-1", offline)] == ["redeemed"] * 2
    with pytest.raises(Conflict) as gone:
        await book.redeem(coupons[0].code, RING, "on")
    [late] = await blocks.merge("b-2", [made(coupons[1], "off-2", clock)])
    assert (gone.value.reason, late.verdict.verdict) == ("already_redeemed", "already_redeemed")


async def test_only_while_it_is_out(book: CouponBook, blocks: Blocks, clock: ManualClock) -> None:
    """What is said to have been redeemed before the block was taken or after its end is not believed, but for five
    minutes that clocks may differ.
    """
    coupons = [await apply(book, clock, n) for n in range(4)]
    since_ms = clock.now_ms()
    block = await blocks.take("b-1", GRABEN, 600, 10)
    clock.advance(HOUR_MS)
    times_ms = [since_ms - 300_001, since_ms - 300_000, block.until_ms + 299_999, block.until_ms + 300_000]
    offline = [
        OfflineRedemption(code=coupon.code, redemption_id="r", at_ms=at_ms)
        for coupon, at_ms in zip(coupons, times_ms, strict=True)
    ]
    said = [each.verdict.verdict for each in await blocks.merge("b-1", offline)]
    assert said == ["not_in_time", "redeemed", "redeemed", "not_in_time"]


async def test_against_the_terms(book: CouponBook, blocks: Blocks, clock: ManualClock) -> None:
    """What a till redeemed against the terms that it knew is recorded, and said every time; not once it is undone."""
    small = await apply(book, clock, 1, min_purchase_cents=1_000)
    first, second = [await apply(book, clock, n, group="coffee") for n in (2, 3)]
    await blocks.take("b-1", GRABEN, 600, 10)
    offline = [
        msgspec.structs.replace(made(small, "r-1", clock), revenue_cents=999),
        made(first, "r-2", clock),
        made(second, "r-2", clock),
    ]
    for _ in range(2):
        merged = [(await blocks.merge("b-1", [each]))[0].verdict for each in offline]
        assert [(each.verdict, each.broke) for each in merged] == [
            ("redeemed", "below_minimum"),
            ("redeemed", ""),
            ("redeemed", "not_combinable"),
        ]
    await book.rollback(second.code, "r-2")
    again = await book.redeem(second.code, GRABEN, "r-3", block="b-1")
    assert (again.redemption_id, again.broke) == ("r-3", None)


async def test_nothing_stays_of_an_erased_customer(
    book: CouponBook, blocks: Blocks, redis: Redis, clock: ManualClock
) -> None:
    """Their codes are in no block any more, not in closed ones either."""
    coupon = await apply(book, clock, 1)
    for n in range(3):
        await blocks.take(f"b-{n}", GRABEN, 600, 10)
        if n < 2:
            await blocks.close(f"b-{n}")
    assert coupon.code.encode() in await redis.smembers("nearcast:block:{b-0}:codes")
    await book.forget(CustomerId("anna"))
    assert sorted(await redis.keys("*")) == [b"nearcast:block:{b-%d}" % n for n in range(3)]


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
    """Of codes that aren't in the block a merge says nothing, not even whether there are any; and however many there
    are, nobody is locked out by them.
    """
    book = CouponBook(redis, b"s", clock, guard=Guard(most_unknown=5))
    blocks = Blocks(redis, book, clock)
    sold = await apply(book, clock, 1)
    await blocks.take("b-1", GRABEN, 600, 10)
    others = [await apply(book, clock, n) for n in (2, 3)]
    await book.redeem(others[0].code, RING, "r-0")
    guesses = [OfflineRedemption(code=f"{n:020}", redemption_id="r", at_ms=1) for n in range(20)]
    wrong = [*guesses, *(made(other, "r", clock) for other in others)]
    merged = await blocks.merge("b-1", [*wrong, made(sold, "r-1", clock)])
    verdicts = {(each.verdict.verdict, each.verdict.detail) for each in merged[:-1]}
    assert [verdict for verdict, _ in verdicts] == ["not_in_block"]
    assert merged[-1].verdict.verdict == "redeemed"


async def test_a_crowded_purchase(book: CouponBook, blocks: Blocks, clock: ManualClock) -> None:
    """More coupons in one purchase than one may have are recorded, too, and said of those that are too many."""
    coupons = [await apply(book, clock, n) for n in range(53)]
    await blocks.take("b-1", GRABEN, 600, 100)
    merged = await blocks.merge("b-1", [made(coupon, "r-1", clock) for coupon in coupons])
    assert {each.verdict.verdict for each in merged} == {"redeemed"}
    assert sorted(each.verdict.broke for each in merged) == [""] * 50 + ["too_many_in_purchase"] * 3
