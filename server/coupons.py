"""The coupon book: one coupon per decision, applied by the customer, redeemed at most once at a till.

    offered (implicit: a decision) --apply--> applied --redeem--> redeemed --rollback--> applied

Time alone makes an applied coupon "expired"; a redeemed one stays redeemed. Every step is one atomic script on the
coupon's own key, so any number of processes may work on one coupon; each step can be repeated safely: applying again
gives the same code, redeeming again with the same redemption id is the same success. Rolling a redemption back, or
calling it off before its request has arrived, forbids that redemption id for good.

An index per customer names their coupons, so that erasing a customer finds them all, however old. It is written before
the coupon, so a crash in between leaves the name of a coupon that isn't there. An erased customer's coupons are
deleted: their codes are as unknown to a till as any made-up one, and no record of them is left.

The book must not tell a code that never existed from one that is long gone, and must not log codes or customers.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol, cast

import msgspec
from redis.asyncio import Redis

from nearcast import keys
from nearcast.clock import Clock
from nearcast.decisions import Decision
from nearcast.errors import Conflict, Gone, InputError, NotFound, Unavailable
from nearcast.events import Channel, DeliveryStatus
from nearcast.ids import (
    CouponCode,
    CustomerId,
    DecisionId,
    MessageId,
    PromotionId,
    Sku,
    StoreId,
    coupon_code,
    message_id,
    normalise_code,
)
from nearcast.metrics import COUPONS
from nearcast.world import Discount, Promotion
from server.store import reaching_store

#: How long a coupon is kept after its end, for returns and for the till's questions.
KEEP_MS = 7 * 86_400_000

#: KEYS: the customer's index. ARGV: the code, until when it is kept, and now, in ms. What is over is dropped.
_INDEX = """
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', ARGV[3])
redis.call('ZADD', KEYS[1], ARGV[2], ARGV[1])
local last = redis.call('ZRANGE', KEYS[1], -1, -1, 'WITHSCORES')[2]
redis.call('PEXPIRE', KEYS[1], string.format('%.0f', last - ARGV[3]))
"""
_CODE_LENGTH = 20


class AppliedOffer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the coupon is good for; fixed when it is applied."""

    customer: CustomerId
    decision: DecisionId
    promotion: PromotionId
    expires_ms: int
    store: StoreId | None = None
    sku: Sku | None = None
    discount: Discount | None = None


class Coupon(msgspec.Struct, frozen=True, kw_only=True):
    """A coupon as it stands now."""

    code: CouponCode
    state: Literal["applied", "redeemed", "expired"]
    offer: AppliedOffer
    applied_ms: int
    redeemed_ms: int | None = None
    redeemed_store: StoreId | None = None
    redemption_id: str | None = None


class CouponBook:
    """Coupons in the state store. `secret` makes the codes unguessable; changing it changes every future code."""

    def __init__(self, redis: Redis, secret: bytes, clock: Clock) -> None:
        self._secret = secret
        self._clock = clock
        self._redis = redis
        self._index = redis.register_script(_INDEX)
        self._script = redis.register_script(Path(__file__).with_suffix(".lua").read_text(encoding="utf-8"))

    def code_of(self, decision: DecisionId) -> CouponCode:
        """The code that a decision's coupon has, or would have."""
        return coupon_code(self._secret, decision)

    async def apply(self, offer: AppliedOffer) -> Coupon:
        """The decision's coupon, minted now or long ago. Raises `Gone` if it would be born expired."""
        code = self.code_of(offer.decision)
        with reaching_store():
            await self._index(
                keys=[keys.coupons_of(offer.customer)], args=[code, offer.expires_ms + KEEP_MS, self._clock.now_ms()]
            )
        return await self._step("apply", code, msgspec.json.encode(offer), offer.expires_ms, KEEP_MS)

    async def validate(self, code: str) -> Coupon:
        """The coupon of a code as typed at a till. Raises `NotFound`."""
        return await self._step("validate", normalise_code(code))

    async def redeem(self, code: str, store: StoreId, redemption_id: str) -> Coupon:
        """Redeem for one purchase. Raises `NotFound`, `Conflict` (another redemption has it) or `Gone` (expired)."""
        return await self._step("redeem", normalise_code(code), store, redemption_id)

    async def rollback(self, code: str, redemption_id: str) -> Coupon:
        """Call a redemption off. Raises `NotFound`, or `Conflict` if another redemption holds the coupon."""
        return await self._step("rollback", normalise_code(code), redemption_id)

    async def forget(self, customer: CustomerId) -> int:
        """Delete all coupons of a customer; how many there were. Their codes become unknown."""
        index = keys.coupons_of(customer)
        with reaching_store():
            found = cast("list[bytes | str]", await self._redis.zrange(index, 0, -1))
            codes = [CouponCode(_text(code)) for code in found]
            gone = 0
            for code in codes:
                gone += await self._redis.unlink(keys.coupon(code))
            # Only the codes read: one applied in between stays in the index, for the next time.
            if codes:
                await self._redis.zrem(index, *codes)
        return gone

    async def _step(self, step: str, code: CouponCode, *arguments: str | int | bytes) -> Coupon:
        now_ms = self._clock.now_ms()
        # What can't be a code is not sent on: it would only become a strange key.
        if len(code) != _CODE_LENGTH or not (code.isascii() and code.isalnum()):
            COUPONS.labels(step, "unknown_coupon").inc()
            raise _refusal("unknown_coupon")
        with reaching_store():
            answer = await self._script(keys=[keys.coupon(code)], args=[step, now_ms, *arguments])
        verdict = _text(answer[0])
        COUPONS.labels(step, verdict).inc()
        if len(answer) == 1:
            raise _refusal(verdict)
        return _coupon(code, cast("Sequence[bytes | str | None]", answer[1]), now_ms)


class Decided(Protocol):
    """What applying an offer needs to know, and whom it tells."""

    @property
    def coupons(self) -> CouponBook: ...

    async def decision(self, customer: CustomerId, decision: DecisionId) -> Decision | None: ...

    async def promotion(self, promotion: PromotionId) -> Promotion | None: ...

    async def receipt(
        self,
        customer: CustomerId,
        message: MessageId,
        decision: DecisionId,
        status: DeliveryStatus,
        channel: Channel | None,
        reason: str,
    ) -> None: ...


async def apply_offer(
    desk: Decided, customer: CustomerId, decision_id: DecisionId, channel: Channel | None = None
) -> Coupon:
    """The coupon of an offer that was made to this customer, and the receipt that it was applied.

    The coupon stands before the receipt is written: if that fails (`Unavailable`), doing it again gives the same code
    and the receipt. Raises `NotFound` (no such offer to this customer) and `Gone` (too late).
    """
    decision = await desk.decision(customer, decision_id)
    if decision is None or decision.customer != customer or decision.outcome != "offer" or decision.promotion is None:
        raise NotFound("unknown_decision", "no such offer was made to this customer")
    promotion = await desk.promotion(decision.promotion)
    if promotion is None:
        coupon = await _kept(desk.coupons, decision_id)
    else:
        coupon = await desk.coupons.apply(offer_of(decision, promotion))
    await desk.receipt(customer, message_id(decision_id, "customer"), decision_id, "applied", channel, "")
    return coupon


def offer_of(decision: Decision, promotion: Promotion) -> AppliedOffer:
    """What the coupon of a decision is good for, and until when."""
    return AppliedOffer(
        customer=decision.customer,
        decision=decision.id,
        promotion=promotion.promotion_id,
        expires_ms=decision.at_ms + round(promotion.coupon_valid_s * 1000),
        store=decision.store,
        sku=decision.sku,
        discount=promotion.what.discount,
    )


async def _kept(book: CouponBook, decision: DecisionId) -> Coupon:
    """A coupon applied before its promotion was taken away is still good; a new one is not minted."""
    try:
        return await book.validate(book.code_of(decision))
    except NotFound:
        raise Gone("promotion_ended", "the promotion behind this offer is no more") from None


def _refusal(verdict: str) -> InputError:
    match verdict:
        case "unknown_coupon":
            return NotFound(verdict, "there is no coupon with this code")
        case "coupon_expired":
            return Gone(verdict, "the coupon's time is over")
        case "redemption_rolled_back":
            return Conflict(verdict, "this redemption was rolled back; redeem again with a new redemption id")
        case _:
            return Conflict(verdict, "another redemption holds this coupon")


def _coupon(code: CouponCode, fields: Sequence[bytes | str | None], now_ms: int) -> Coupon:
    offer, state, applied_ms, redemption, store, redeemed_ms = (None if f is None else _text(f) for f in fields)
    if offer is None or applied_ms is None:
        raise Unavailable("a coupon's record is incomplete")
    decoded = msgspec.json.decode(offer, type=AppliedOffer)
    redeemed = state == "redeemed"
    return Coupon(
        code=code,
        state="redeemed" if redeemed else "expired" if now_ms >= decoded.expires_ms else "applied",
        offer=decoded,
        applied_ms=int(applied_ms),
        redeemed_ms=int(redeemed_ms) if redeemed_ms else None,
        redeemed_store=StoreId(store) if store else None,
        redemption_id=redemption,
    )


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
