"""The coupon book: one coupon per decision, applied by the customer, redeemed at most once at a till.

    offered --apply--> applied --reserve--> reserved --redeem--> redeemed
       |                |   ^                |    |                  |
    withdraw            |   '----release-----'    |                  |
       |                |   ^------- its time is over, or the customer leaves the store
       v                |   '------------------------rollback--------'
    withdrawn           '--redeem--> redeemed

An offer that was made is "offered", which nothing is stored about. Time alone makes an applied coupon "expired"; a
redeemed one stays redeemed, and one that a redemption is rolled back of (the purchase was called off, or what was
bought came back) is as it was before. A withdrawn offer can't be applied any more; an applied one isn't withdrawn.

Every step is one atomic script, one round trip, so any number of processes may work on one coupon; each step can be
repeated safely: applying again gives the same code, reserving or redeeming again for the same redemption is the same
success. Rolling a redemption back, or calling it off before its request has arrived, forbids that redemption id for
good. What a coupon is good for is fixed when it is applied. The coupons of one purchase (one redemption id at one
store) are looked at together, in the same step: that is where exclusive ones and groups count.

An index per customer names their coupons, so that erasing a customer finds them all, however old. An erased customer's
coupons are deleted: their codes are as unknown to a till as any made-up one, and no record of them is left.

The book must not tell a code that never existed from one that is long gone or a forged token, neither by the answer nor
by how many round trips it takes, and must not log codes or customers. The scripts touch keys of several slots: they
need a store that is one server.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol, cast

import msgspec
from redis.asyncio import Redis

from nearcast import keys
from nearcast.clock import Clock
from nearcast.coupons import COUPON_TYPE, CouponClaims
from nearcast.decisions import Decision
from nearcast.errors import Conflict, Gone, InputError, NotFound, TooManyRequests, Unavailable
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
from server.coupon_guard import Guard, Places, nowhere
from server.coupon_signing import CouponSigner
from server.scripts import SharedScript
from server.store import reaching_store, text

#: How long a coupon is kept after its end, for returns and for the till's questions.
KEEP_MS = 7 * 86_400_000
#: How long an offer that was applied or withdrawn is remembered at least: longer than the decision is, without which
#: nothing can be applied. Forgotten earlier, its coupon could be applied and redeemed anew.
REMEMBERED_MS = 31 * 86_400_000
#: How far the clock of an offline till may be from ours.
CLOCKS_MS = 300_000
#: How long a till may reserve a coupon; and how long at most one is reserved while the customer is in the store.
MOST_HOLD_S = 3_600
IN_STORE_HOLD_S = 12 * 3_600
_CODE_LENGTH = 20
#: What can't be a code asks for this one, which no coupon has.
_NO_CODE = CouponCode("-")

State = Literal["applied", "reserved", "redeemed", "expired"]


class AppliedOffer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the coupon is good for; fixed when it is applied."""

    customer: CustomerId
    decision: DecisionId
    promotion: PromotionId
    expires_ms: int
    store: StoreId | None = None
    sku: Sku | None = None
    discount: Discount | None = None
    #: As `nearcast.world.CouponRules` has them.
    exclusive: bool = False
    group: str | None = None
    this_store: bool = False
    min_purchase_cents: int = 0


class Coupon(msgspec.Struct, frozen=True, kw_only=True):
    """A coupon as it stands now. `redemption_id` is that of the reservation or the redemption, whichever it has."""

    code: CouponCode
    state: State
    offer: AppliedOffer
    applied_ms: int
    redemption_id: str | None = None
    redeemed_ms: int | None = None
    redeemed_store: StoreId | None = None
    #: What the till said: what the purchase cost before the discount, and the discount.
    revenue_cents: int | None = None
    discount_cents: int | None = None
    held_store: StoreId | None = None
    held_until_ms: int | None = None
    while_in_store: bool = False
    #: The block of coupons for offline tills that it is out in, and until when.
    block: str | None = None
    block_until_ms: int | None = None
    #: The term that it was redeemed against by an offline till: a reason as `CouponBook.redeem` has them.
    broke: str | None = None


class Redemption(msgspec.Struct, frozen=True, kw_only=True):
    """One redemption, as its receipts carry it."""

    redemption_id: str
    revenue_cents: int | None = None
    discount_cents: int | None = None
    store: StoreId | None = None


class CouponBook:
    """Coupons in the state store. `secret` makes the codes unguessable and the tokens unforgeable; another secret
    makes every future code another one.
    """

    def __init__(
        self,
        redis: Redis,
        secret: bytes,
        clock: Clock,
        *,
        guard: Guard | None = None,
        places: Places = nowhere,
        key_names: Sequence[str] = ("1",),
    ) -> None:
        self._secret = secret
        self._clock = clock
        self._redis = redis
        self._guard = guard or Guard()
        self.places = places
        self.signer = CouponSigner(secret, key_names)
        folder = Path(__file__).parent
        self._script = SharedScript(redis, (folder / "coupons.lua").read_text(encoding="utf-8"))
        self._of_customer = redis.register_script((folder / "coupons_of.lua").read_text(encoding="utf-8"))

    def code_of(self, decision: DecisionId) -> CouponCode:
        """The code that a decision's coupon has, or would have."""
        return coupon_code(self._secret, decision)

    def token_of(self, coupon: Coupon) -> str:
        """The coupon as a signed token, for its QR code."""
        offer = coupon.offer
        claims = CouponClaims(
            code=coupon.code,
            promotion=offer.promotion,
            exp=offer.expires_ms // 1000,
            store=offer.store,
            sku=offer.sku,
            discount=offer.discount,
            exclusive=offer.exclusive,
            group=offer.group,
            this_store=offer.this_store,
            min_purchase_cents=offer.min_purchase_cents,
        )
        return self.signer.sign(COUPON_TYPE, claims)

    async def apply(self, offer: AppliedOffer) -> Coupon:
        """The decision's coupon, minted now or long ago.

        Raises `Gone` if it would be born expired or its offer was withdrawn, `TooManyRequests` by the guard.
        """
        code = self.code_of(offer.decision)
        now_ms = self._clock.now_ms()
        left_ms = max(offer.expires_ms + KEEP_MS - now_ms, REMEMBERED_MS)
        where = [keys.coupon(code), keys.coupons_of(offer.customer), keys.applied_lately(offer.customer)]
        if offer.store is not None:
            where.append(keys.store_coupons(offer.store))
        arguments = (
            *(msgspec.json.encode(offer), offer.expires_ms, left_ms, self._guard.applies_per_hour),
            *(offer.customer, offer.promotion, offer.store or "", "1" if offer.this_store else ""),
            *("1" if offer.exclusive else "", offer.group or "", offer.min_purchase_cents or ""),
        )
        return _coupon(code, await self._run("apply", where, now_ms, *arguments), now_ms)

    async def withdraw(self, decision: DecisionId) -> bool:
        """Take an offer back. False if it was applied: then nothing is changed. Which comes first is decided here."""
        answer = await self._run("withdraw", [keys.coupon(self.code_of(decision))], self._clock.now_ms(), REMEMBERED_MS)
        return text(cast("bytes", answer[0])) == "withdrawn"

    async def validate(self, code: str, *, asker: str = "") -> Coupon:
        """The coupon of a code as typed at a till, or of a token. Raises `NotFound`.

        Here and in the other steps of tills, `asker` is whose unknown codes are counted (`server.coupon_guard`); it may
        raise `TooManyRequests`.
        """
        return (await self._step("validate", code, asker))[0]

    async def reserve(
        self,
        code: str,
        store: StoreId,
        redemption_id: str,
        *,
        hold_s: float = 300.0,
        while_in_store: bool = False,
        block: str = "",
        asker: str = "",
    ) -> Coupon:
        """Keep a coupon for one purchase for so long, or while the customer is in the store (for 12 hours at most).

        For the same purchase it may be repeated, and then lasts longer. Raises as `redeem`.
        """
        hold_ms = round((IN_STORE_HOLD_S if while_in_store else min(hold_s, MOST_HOLD_S)) * 1000)
        stays = "1" if while_in_store else ""
        return (await self._step("reserve", code, asker, store, redemption_id, hold_ms, stays, block))[0]

    async def release(self, code: str, store: StoreId, redemption_id: str, *, asker: str = "") -> Coupon:
        """End a reservation; one that is over already is no error. Raises `NotFound`, or `Conflict` if another
        purchase has the coupon, or this one has redeemed it.
        """
        return (await self._step("release", code, asker, store, redemption_id))[0]

    async def redeem(
        self,
        code: str,
        store: StoreId,
        redemption_id: str,
        *,
        revenue_cents: int | None = None,
        discount_cents: int | None = None,
        block: str = "",
        offline_ms: int | None = None,
        asker: str = "",
    ) -> Coupon:
        """Redeem for one purchase. Raises `NotFound`, `Gone` (expired), `TooManyRequests`, or `Conflict`: another
        redemption or reservation has it, or its terms forbid it; the reason says what.

        `block` opens what is out in that block. With `offline_ms` the redemption is one that an offline till has made
        then, by the block's coupons. It is recorded whoever has reserved the coupon, and whatever terms and pace would
        say; it raises only if the coupon was redeemed by another or is expired, the redemption was called off, or it is
        not one of the block's coupons and time.
        """
        lat, lng = self.places(store) or ("", "")
        coupon, _ = await self._step(
            *("redeem", code, asker, store, redemption_id),
            *("" if revenue_cents is None else revenue_cents, "" if discount_cents is None else discount_cents),
            *(block, lat, lng, self._guard.redemptions_per_hour, self._guard.most_km_per_h),
            *("" if offline_ms is None else offline_ms, CLOCKS_MS),
        )
        return coupon

    async def rollback(
        self, code: str, redemption_id: str, store: StoreId | None = None, *, asker: str = ""
    ) -> tuple[Coupon, Redemption | None]:
        """Call a redemption off; the coupon, and what was redeemed, if it was (None: it had not been yet).

        Repeated with or without the store it says the same. Raises `NotFound`, or `Conflict` if another redemption
        holds the coupon.
        """
        coupon, was = await self._step("rollback", code, asker, store or "", redemption_id)
        if not was:
            return coupon, None
        where, revenue, discount = was.split("\x1f")
        called_off = Redemption(
            redemption_id=redemption_id,
            revenue_cents=int(revenue) if revenue else None,
            discount_cents=int(discount) if discount else None,
            store=StoreId(where),
        )
        return coupon, called_off

    async def left_store(self, customer: CustomerId, store: StoreId, at_ms: int) -> int:
        """The customer left the store then; what was reserved before, while they are in it, is free. How many."""
        with reaching_store():
            freed: int = await self._of_customer(
                keys=[keys.coupons_of(customer)], args=["left", store, at_ms, self._clock.now_ms()]
            )
        COUPONS.labels("left_store", "released").inc(freed)
        return freed

    async def forget(self, customer: CustomerId) -> int:
        """Delete all coupons of a customer; how many there were. Their codes become unknown."""
        with reaching_store():
            gone: int = await self._of_customer(keys=[keys.coupons_of(customer)], args=["forget", customer])
        return gone

    def _code_in(self, typed: str) -> CouponCode:
        code = self.signer.code_in(typed) if typed.count(".") == 2 else normalise_code(typed)
        # What can't be a code must not become a strange key; it costs the same round trip all the same.
        known = code is not None and len(code) == _CODE_LENGTH and code.isascii() and code.isalnum()
        return code if known and code is not None else _NO_CODE

    async def _step(self, step: str, typed: str, asker: str, *arguments: str | float) -> tuple[Coupon, str]:
        """The coupon after a till's step, and what else the script said."""
        code, now_ms = self._code_in(typed), self._clock.now_ms()
        where = [keys.coupon(code), keys.unknown_codes(asker)]
        answer = await self._run(step, where, now_ms, *arguments, counted=bool(asker))
        return _coupon(code, answer, now_ms), text(cast("bytes", answer[2])) if len(answer) > 2 else ""

    async def _run(
        self, step: str, where: list[str], now_ms: int, *arguments: str | float | bytes, counted: bool = False
    ) -> Sequence[object]:
        guard = self._guard
        bounds = (guard.most_unknown if counted else 0, round(guard.unknown_window_s * 1000))
        with reaching_store():
            answer = cast("Sequence[object]", await self._script(where, [step, now_ms, *bounds, *arguments]))
        verdict = text(cast("bytes", answer[0]))
        COUPONS.labels(step, verdict).inc()
        if verdict not in _FINE:
            raise _refusal(verdict, text(cast("bytes", answer[1])) if len(answer) > 1 else "")
        return answer


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
        redemption: Redemption | None = None,
    ) -> None: ...


async def apply_offer(
    desk: Decided, customer: CustomerId, decision_id: DecisionId, channel: Channel | None = None
) -> Coupon:
    """The coupon of an offer that was made to this customer, and the receipt that it was applied.

    The coupon stands before the receipt is written: if that fails (`Unavailable`), doing it again gives the same code
    and the receipt. Raises `NotFound` (no such offer to this customer), `Gone` (too late, or recalled), `Conflict` (an
    offer without a coupon) and `TooManyRequests`.
    """
    decision = await desk.decision(customer, decision_id)
    if decision is None or decision.customer != customer or decision.outcome != "offer" or decision.promotion is None:
        raise NotFound("unknown_decision", "no such offer was made to this customer")
    promotion = await desk.promotion(decision.promotion)
    if promotion is None or promotion.coupon.kind == "none":
        coupon = await _kept(desk.coupons, decision_id, promotion)
    else:
        coupon = await desk.coupons.apply(offer_of(decision, promotion))
    await desk.receipt(customer, message_id(decision_id, "customer"), decision_id, "applied", channel, "")
    return coupon


def offer_of(decision: Decision, promotion: Promotion) -> AppliedOffer:
    """What the coupon of a decision is good for, and until when."""
    rules = promotion.coupon
    return AppliedOffer(
        customer=decision.customer,
        decision=decision.id,
        promotion=promotion.promotion_id,
        expires_ms=decision.at_ms + round(promotion.coupon_valid_s * 1000),
        store=decision.store,
        sku=decision.sku,
        discount=decision.discount or promotion.what.discount,
        exclusive=rules.exclusive,
        group=rules.group,
        this_store=rules.this_store,
        min_purchase_cents=rules.min_purchase_cents,
    )


async def _kept(book: CouponBook, decision: DecisionId, promotion: Promotion | None) -> Coupon:
    """A coupon applied before its promotion was taken away, or had none, is still good; a new one is not minted."""
    try:
        return await book.validate(book.code_of(decision))
    except NotFound:
        if promotion is None:
            raise Gone("promotion_ended", "the promotion behind this offer is no more") from None
        raise Conflict("no_coupon", "this offer comes without a coupon: there is nothing to apply") from None


#: What a step that was done says; anything else is a refusal.
_FINE = frozenset({"new", "again", "known", "withdrawn", "kept"})
_REFUSALS: dict[str, tuple[type[InputError], str]] = {
    "unknown_coupon": (NotFound, "there is no coupon with this code"),
    "coupon_expired": (Gone, "the coupon's time is over"),
    "offer_recalled": (Gone, "this offer was taken back before it was applied"),
    "redemption_rolled_back": (Conflict, "this redemption was rolled back; redeem again with a new redemption id"),
    "already_redeemed": (Conflict, "another redemption holds this coupon"),
    "reserved": (Conflict, "another purchase has reserved this coupon"),
    "in_block": (Conflict, "this coupon is out with the offline tills of its store"),
    "not_in_block": (Conflict, "this coupon is not one of this block, or the block is of another store"),
    "not_in_time": (Conflict, "the block was not out at the time of this redemption"),
    "too_many_rolled_back": (Conflict, "too many redemptions of this coupon were rolled back: it is not good any more"),
    "other_store": (Conflict, "this coupon is good at the store of its offer only"),
    "too_many_in_purchase": (Conflict, "this purchase has as many coupons as one may have"),
    "too_fast": (Conflict, "the customer has redeemed a coupon too far from here a moment ago"),
}


def _refusal(verdict: str, more: str) -> InputError:
    match verdict:
        case "not_combinable":
            return Conflict(verdict, f"this coupon can't be combined with that of promotion {more!r} in this purchase")
        case "below_minimum":
            return Conflict(verdict, f"this coupon is for purchases of {more} cents or more", "revenue_cents")
        case "locked_out":
            detail = "too many codes that don't exist were asked for with this key; codes are not looked at for a while"
            return TooManyRequests("too_many_unknown_codes", detail, retry_after_s=int(more) / 1000)
        case "too_many_applied" | "too_many_redeemed":
            detail = f"this customer has {verdict.removeprefix('too_many_')} as many coupons as is allowed in an hour"
            return TooManyRequests(verdict, detail, retry_after_s=int(more) / 1000)
    kind, detail = _REFUSALS[verdict]
    return kind(verdict, detail)


def _coupon(code: CouponCode, answer: Sequence[object], now_ms: int) -> Coupon:
    shown = [None if f is None else text(f) for f in cast("Sequence[bytes | str | None]", answer[1])]
    offer, state, applied, redemption, store, redeemed, revenue, discount, by, at, until, stays, block, *rest = shown
    back, broke = rest
    if offer is None or applied is None:
        raise Unavailable("a coupon's record is incomplete")
    decoded = msgspec.json.decode(offer, type=AppliedOffer)
    if state == "redeemed":
        return Coupon(
            code=code,
            state="redeemed",
            offer=decoded,
            applied_ms=int(applied),
            redemption_id=redemption,
            redeemed_ms=int(redeemed) if redeemed else None,
            redeemed_store=StoreId(store) if store else None,
            revenue_cents=int(revenue) if revenue else None,
            discount_cents=int(discount) if discount else None,
            broke=broke,
        )
    if now_ms >= decoded.expires_ms:
        return Coupon(code=code, state="expired", offer=decoded, applied_ms=int(applied))
    held = until is not None and now_ms < int(until)
    out = back is not None and now_ms < int(back)
    return Coupon(
        code=code,
        state="reserved" if held else "applied",
        offer=decoded,
        applied_ms=int(applied),
        redemption_id=by if held else None,
        held_store=StoreId(at) if held and at else None,
        held_until_ms=int(until) if held and until else None,
        while_in_store=held and stays == "1",
        block=block if out else None,
        block_until_ms=int(back) if out and back else None,
    )
