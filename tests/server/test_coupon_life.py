"""The whole life of coupons on a real store, step by step against a model of dictionaries."""

from typing import NamedTuple

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from nearcast.clock import ManualClock
from nearcast.coupons import OfflineRedemption
from nearcast.errors import InputError
from nearcast.ids import CustomerId, DecisionId, PromotionId, StoreId
from server.blocks import GRACE_S, Blocks
from server.coupons import AppliedOffer, Coupon, CouponBook

ANNA, GRABEN, RING = CustomerId("anna"), StoreId("graben"), StoreId("ring")
LIFE_MS, HOLD_S, BLOCK_S = 4_000_000, 300.0, 600.0
LEAST_CENTS = 1_000


class Step(NamedTuple):
    """What is done to which coupon, where, for which purchase; and how long after the step before."""

    what: str
    coupon: int
    store: StoreId
    redemption: str
    wait_ms: int
    revenue: int | None
    flag: bool


#: Alone in its purchase · two of a group, one of them with terms · one without terms.
TERMS = (
    {"exclusive": True},
    {"group": "coffee"},
    {"group": "coffee", "this_store": True, "min_purchase_cents": LEAST_CENTS},
    {},
)


def offer(n: int, expires_ms: int) -> AppliedOffer:
    plain = AppliedOffer(
        customer=ANNA,
        decision=DecisionId(f"d-{n}"),
        promotion=PromotionId(f"p-{n}"),
        expires_ms=expires_ms,
        store=GRABEN,
    )
    return msgspec.structs.replace(plain, **TERMS[n])


class Life:
    """One coupon of the model."""

    def __init__(self, n: int, offered: AppliedOffer) -> None:
        self.n = n
        self.offer = offered
        self.state = "offered"
        self.applied_at = 0
        #: Where, for which purchase, until when, whether only while they are in the store, and since when.
        self.hold: tuple[StoreId, str, int, bool, int] | None = None
        self.redeemed: tuple[StoreId, str] | None = None
        self.void: set[tuple[str, str]] = set()
        self.undone: dict[str, StoreId] = {}
        self.block: str | None = None

    def held(self, now_ms: int) -> bool:
        return self.hold is not None and now_ms < self.hold[2]

    def of(self, store: StoreId, redemption: str, now_ms: int) -> bool:
        """Whether it is part of this purchase."""
        reserved = self.held(now_ms) and self.hold is not None and self.hold[:2] == (store, redemption)
        return reserved or self.redeemed == (store, redemption)

    def shown(self, now_ms: int) -> str:
        if self.redeemed:
            return "redeemed"
        if now_ms >= self.offer.expires_ms:
            return "expired"
        return "reserved" if self.held(now_ms) else "applied"


class Model:
    """The rules as docs/coupons.md tells them."""

    def __init__(self, expires_ms: int) -> None:
        self.lives = [Life(n, offer(n, expires_ms)) for n in range(len(TERMS))]
        self.blocks: dict[str, tuple[StoreId, set[int], int]] = {}
        self.closed: set[str] = set()

    def step(self, step: Step, now_ms: int) -> str:
        life = self.lives[step.coupon]
        match step.what:
            case "apply":
                return self.apply(life, now_ms)
            case "withdraw":
                life.state = "withdrawn" if life.state == "offered" else life.state
                return str(life.state == "withdrawn")
            case "left":
                freed = 0
                for each in self.lives:
                    if (
                        each.hold
                        and each.hold[0] == step.store
                        and each.hold[3]
                        and each.hold[4] <= left_ms(step, now_ms)
                    ):
                        freed += each.held(now_ms)
                        each.hold = None
                return str(freed)
            case "take":
                return self.take(step, now_ms)
            case "close":
                if step.redemption not in self.blocks:
                    return "unknown_block"
                for each in self.lives:
                    each.block = None if each.block == step.redemption else each.block
                self.closed.add(step.redemption)
                return "closed"
            case "forget":
                gone = [each for each in self.lives if each.state in ("applied", "redeemed")]
                for each in gone:
                    for _, names, _ in self.blocks.values():
                        names.discard(each.n)
                    self.lives[each.n] = Life(each.n, each.offer)
                return str(len(gone))
        if life.state in ("offered", "withdrawn") and step.what != "merge":
            return "unknown_coupon"
        return getattr(self, step.what)(life, step, now_ms) or life.shown(now_ms)

    def apply(self, life: Life, now_ms: int) -> str:
        if life.state == "withdrawn":
            return "offer_recalled"
        if life.state == "offered":
            if now_ms >= life.offer.expires_ms:
                return "coupon_expired"
            life.state = "applied"
            life.applied_at = now_ms
        return life.shown(now_ms)

    def take(self, step: Step, now_ms: int) -> str:
        name = step.redemption
        if name in self.blocks:
            if self.blocks[name][0] != step.store:
                return "other_store"
            if name in self.closed:
                return "block_closed"
            return str(sum(each.block == name and each.state == "applied" for each in self.lives))
        free_ms = now_ms + round((BLOCK_S + GRACE_S) * 1000)
        fit = {each.n for each in self.lives if self.fits(each, step.store, now_ms)}
        self.blocks[name] = step.store, fit, free_ms
        for n in fit:
            self.lives[n].block = name
        return str(len(fit))

    def fits(self, life: Life, store: StoreId, now_ms: int) -> bool:
        out = life.block is not None and now_ms < self.blocks[life.block][2]
        return life.state == "applied" and store == GRABEN and not out and life.shown(now_ms) == "applied"

    def validate(self, life: Life, step: Step, now_ms: int) -> str:
        return ""

    def taken(self, life: Life, store: StoreId, redemption: str, block: str, now_ms: int) -> str:
        if ("", redemption) in life.void or (store, redemption) in life.void:
            return "redemption_rolled_back"
        if life.block and now_ms < self.blocks[life.block][2] and life.block != block:
            return "in_block"
        if life.held(now_ms) and not life.of(store, redemption, now_ms):
            return "reserved"
        return ""

    def in_the_way(self, life: Life, store: StoreId, redemption: str, now_ms: int) -> bool:
        return any(
            life.offer.exclusive
            or each.offer.exclusive
            or (life.offer.group is not None and life.offer.group == each.offer.group)
            for each in self.lives
            if each is not life and each.of(store, redemption, now_ms)
        )

    def reserve(self, life: Life, step: Step, now_ms: int) -> str:
        if life.redeemed:
            return "" if life.redeemed == (step.store, step.redemption) else "already_redeemed"
        if taken := self.taken(life, step.store, step.redemption, "", now_ms):
            return taken
        if now_ms >= life.offer.expires_ms:
            return "coupon_expired"
        if life.offer.this_store and step.store != GRABEN:
            return "other_store"
        if self.in_the_way(life, step.store, step.redemption, now_ms):
            return "not_combinable"
        for_ms = 12 * 3_600_000 if step.flag else round(HOLD_S * 1000)
        life.hold = step.store, step.redemption, min(now_ms + for_ms, life.offer.expires_ms), step.flag, now_ms
        return ""

    def release(self, life: Life, step: Step, now_ms: int) -> str:
        if life.redeemed:
            return "already_redeemed"
        if life.held(now_ms):
            if not life.of(step.store, step.redemption, now_ms):
                return "reserved"
            life.hold = None
        return ""

    def redeem(self, life: Life, step: Step, now_ms: int) -> str:
        if life.redeemed:
            return "" if life.redeemed == (step.store, step.redemption) else "already_redeemed"
        if taken := self.taken(life, step.store, step.redemption, "", now_ms):
            return taken
        if now_ms >= life.offer.expires_ms:
            return "coupon_expired"
        if life.offer.this_store and step.store != GRABEN:
            return "other_store"
        if step.revenue is not None and step.revenue < life.offer.min_purchase_cents:
            return "below_minimum"
        if self.in_the_way(life, step.store, step.redemption, now_ms):
            return "not_combinable"
        self.redeems(life, step.store, step.redemption)
        return ""

    def merge(self, life: Life, step: Step, now_ms: int) -> str:
        """By the block that is named like the redemption."""
        block = step.redemption
        if block not in self.blocks:
            return "unknown_block"
        store, names, free_ms = self.blocks[block]
        if life.n not in names:
            return "not_in_block"
        if life.redeemed:
            return "" if life.redeemed == (store, step.redemption) else "already_redeemed"
        if ("", step.redemption) in life.void or (store, step.redemption) in life.void:
            return "redemption_rolled_back"
        until_ms = free_ms - round(GRACE_S * 1000)
        if not until_ms - round(BLOCK_S * 1000) - 300_000 <= made_ms(step, now_ms) < until_ms + 300_000:
            return "not_in_time"
        if made_ms(step, now_ms) >= life.offer.expires_ms:
            return "coupon_expired"
        self.redeems(life, store, step.redemption)
        return ""

    def redeems(self, life: Life, store: StoreId, redemption: str) -> None:
        life.state, life.redeemed, life.hold = "redeemed", (store, redemption), None

    def rollback(self, life: Life, step: Step, now_ms: int) -> str:
        store = step.store if step.flag else ""
        if (store, step.redemption) in life.void:
            return ""
        if life.redeemed and life.redeemed[1] == step.redemption and store in ("", life.redeemed[0]):
            life.undone[step.redemption] = life.redeemed[0]
            life.state, life.redeemed = "applied", None
        elif life.redeemed and (step.redemption not in life.undone or store not in ("", life.undone[step.redemption])):
            return "already_redeemed"
        if life.held(now_ms) and life.hold and life.hold[1] == step.redemption and store in ("", life.hold[0]):
            life.hold = None
        life.void.add((store, step.redemption))
        return ""


def left_ms(step: Step, now_ms: int) -> int:
    """When the customer left of whom we hear now."""
    return now_ms - (250_000 if step.flag else 0)


def made_ms(step: Step, now_ms: int) -> int:
    """When the offline redemption that is merged now was made."""
    return now_ms - (1_700_000 if step.flag else 30_000)


async def take(book: CouponBook, blocks: Blocks, step: Step, expires_ms: int, now_ms: int) -> str:
    """The step on the real book; what it said."""
    code = book.code_of(DecisionId(f"d-{step.coupon}"))
    coupon: Coupon
    match step.what:
        case "apply":
            coupon = await book.apply(offer(step.coupon, expires_ms))
        case "withdraw":
            return str(await book.withdraw(DecisionId(f"d-{step.coupon}")))
        case "left":
            return str(await book.left_store(ANNA, step.store, left_ms(step, now_ms)))
        case "take":
            return str(len((await blocks.take(step.redemption, step.store, BLOCK_S, 100)).coupons))
        case "close":
            await blocks.close(step.redemption)
            return "closed"
        case "forget":
            return str(await book.forget(ANNA))
        case "validate":
            coupon = await book.validate(code)
        case "reserve":
            coupon = await book.reserve(code, step.store, step.redemption, hold_s=HOLD_S, while_in_store=step.flag)
        case "release":
            coupon = await book.release(code, step.store, step.redemption)
        case "redeem":
            coupon = await book.redeem(code, step.store, step.redemption, revenue_cents=step.revenue)
        case "merge":
            made = OfflineRedemption(code=code, redemption_id=step.redemption, at_ms=made_ms(step, now_ms))
            [merged] = await blocks.merge(step.redemption, [made])
            if merged.coupon is None:
                return merged.verdict.verdict
            coupon = merged.coupon
        case _:
            coupon, _ = await book.rollback(code, step.redemption, step.store if step.flag else None)
    assert coupon.offer == offer(step.coupon, expires_ms)
    assert (coupon.redemption_id is not None) == (coupon.state in ("reserved", "redeemed"))
    return coupon.state


_TILLS = ["reserve", "reserve", "release", "redeem", "redeem", "redeem", "rollback"]
_STEPS = st.builds(
    Step,
    what=st.sampled_from(
        [*_TILLS, *_TILLS, "apply", "withdraw", "validate", "left", "take", "close", "merge", "forget"]
    ),
    coupon=st.integers(0, len(TERMS) - 1),
    store=st.sampled_from([GRABEN, GRABEN, GRABEN, RING]),
    redemption=st.sampled_from(["r-1", "r-1", "r-1", "r-2"]),
    wait_ms=st.sampled_from([0] * 8 + [200_000, 1_700_000]),
    revenue=st.sampled_from([None, None, LEAST_CENTS - 1, LEAST_CENTS]),
    flag=st.booleans(),
)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(applied=st.sampled_from([True, True, True, False]), steps=st.lists(_STEPS, max_size=25))
async def test_life(redis: Redis, applied: bool, steps: list[Step]) -> None:
    """Any sequence of steps, repeated and late ones too, goes as the model says; nothing is left when all is forgotten
    but tombstones of withdrawn offers and blocks.
    """
    await redis.flushdb()
    clock = ManualClock()
    book = CouponBook(redis, b"s", clock)
    blocks = Blocks(redis, book, clock)
    expires_ms = clock.now_ms() + LIFE_MS
    model = Model(expires_ms)
    first = [Step("apply", n, GRABEN, "", 0, None, False) for n in range(len(TERMS))] if applied else []
    for step in [*first, *steps]:
        clock.advance(step.wait_ms)
        try:
            said = await take(book, blocks, step, expires_ms, clock.now_ms())
        except InputError as error:
            said = error.reason
        assert said == model.step(step, clock.now_ms()), step
    await book.forget(ANNA)
    withdrawn = sum(life.state == "withdrawn" for life in model.lives)
    left = [
        name async for name in redis.scan_iter() if not name.startswith(b"nearcast:block:") or name.endswith(b":codes")
    ]
    assert len(left) == withdrawn, left
