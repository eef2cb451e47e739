"""Coupons over HTTP: applied by the customer's app (through its server), reserved and redeemed by tills.

A till learns what the coupon is good for, never whose it is. Reserving and redeeming need a `redemption_id`, the till's
own name for the purchase, which it makes up once and sends again when it retries; several coupons in one purchase have
the same. Wherever a code goes, the signed token of its QR code may go instead. docs/coupons.md shows it all in order.
"""

from typing import Annotated

import msgspec
from fastapi import APIRouter, Depends, Request, Response

from nearcast.coupons import Block, OfflineRedemption, Verdicts
from nearcast.errors import Conflict, Gone
from nearcast.events import Cents, Id
from nearcast.ids import CouponCode, CustomerId, DecisionId, PromotionId, Sku, StoreId, message_id
from nearcast.world import Discount
from server.api.auth import Allow, Behind, Key
from server.api.bodies import accepts, answer, checked_id, read
from server.api.services import Services
from server.blocks import LONGEST_S, MOST_COUPONS
from server.coupon_guard import asker
from server.coupon_signing import qr_svg
from server.coupons import MOST_HOLD_S, Coupon, Redemption, State

router = APIRouter(tags=["coupons"])

_REDEMPTION = "graben-3-2026-11-22-000815"


class ApplyRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which offer, made to whom."""

    customer: Id
    decision: Id


class ReserveRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Where, for which purchase, and for how many seconds; or for as long as the customer is in the store."""

    store: Id
    redemption_id: Id
    hold_s: Annotated[float, msgspec.Meta(gt=0, le=MOST_HOLD_S)] = 300.0
    while_in_store: bool = False
    block: Id | None = None


class ReleaseRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whose reservation ends."""

    store: Id
    redemption_id: Id


class RedeemRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Where, and the till's own name for this purchase.

    `revenue_cents` is what the purchase costs before the discount, `discount_cents` what the coupon takes off; `block`
    the id of the block that the coupon is out in.
    """

    store: Id
    redemption_id: Id
    revenue_cents: Cents | None = None
    discount_cents: Cents | None = None
    block: Id | None = None


class RollbackRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """The redemption to call off; with `store`, only if it is that store's."""

    redemption_id: Id
    store: Id | None = None


class BlockRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """The caller's own name for the block, for how many seconds it is good, and the most coupons."""

    id: Id
    for_s: Annotated[float, msgspec.Meta(gt=0, le=LONGEST_S)]
    most: Annotated[int, msgspec.Meta(ge=1, le=MOST_COUPONS)] = 500


class MergeRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What the tills redeemed by a block, or some of it; `close` once that is all."""

    redemptions: Annotated[list[OfflineRedemption], msgspec.Meta(max_length=MOST_COUPONS)] = []
    close: bool = False


class CouponView(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A coupon as a till sees it. "applied" can be redeemed, "reserved" by the purchase that reserved it only.

    `redemption_id` and the sums are for the store whose purchase it is.
    """

    code: CouponCode
    state: State
    promotion: PromotionId
    expires_ms: int
    applied_ms: int
    store: StoreId | None = None
    sku: Sku | None = None
    discount: Discount | None = None
    exclusive: bool = False
    group: str | None = None
    this_store: bool = False
    min_purchase_cents: int = 0
    redemption_id: str | None = None
    redeemed_ms: int | None = None
    redeemed_store: StoreId | None = None
    revenue_cents: int | None = None
    discount_cents: int | None = None
    held_store: StoreId | None = None
    held_until_ms: int | None = None
    while_in_store: bool = False
    block: str | None = None
    block_until_ms: int | None = None
    #: For the customer's app: the signed token, which the QR code shows.
    token: str = ""


class BlockAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """A block, and the same as a signed token for tills that verify it themselves."""

    block: Block
    token: str


@router.post(
    "/v1/coupons/apply",
    dependencies=[Depends(Allow("intake"))],
    openapi_extra=accepts(
        ApplyRequest, {"anna's offer": ApplyRequest(customer="anna", decision="9f86d081884c7d659a2feaa0c55ad015")}
    ),
)
async def apply(request: Request, services: Behind) -> Response:
    """The code of an offer, and its token. Applying again gives the same code."""
    wanted = await read(request, ApplyRequest)
    coupon = await services.apply(CustomerId(wanted.customer), DecisionId(wanted.decision))
    return answer(_view(coupon, None, services.coupons.token_of(coupon)))


@router.get("/v1/coupons/keys")
async def public_keys(services: Behind) -> Response:
    """The public keys that coupons and blocks are signed with, as JWKS: those in use, and older ones until they are
    taken away. Fetch them once a day, and when a key id is unknown.
    """
    headers = {"Cache-Control": "public, max-age=3600"}
    return Response(services.coupons.signer.jwks, headers=headers, media_type="application/jwk-set+json")


@router.get("/v1/coupons/{code}", dependencies=[Depends(Allow("pos"))])
async def validate(code: str, services: Behind, key: Key, store: str | None = None) -> Response:
    """What a code is good for, and whether it still is. Case, dashes, spaces and I/L/O are forgiven."""
    coupon = await services.coupons.validate(code, asker=_asker(services, key, store))
    return answer(_view(coupon, None if store is None else StoreId(store)))


@router.get("/v1/coupons/{code}/qr", dependencies=[Depends(Allow("intake"))])
async def qr(code: str, services: Behind, key: Key) -> Response:
    """The coupon's signed token as a QR code (SVG), for the customer's app to show."""
    coupon = await services.coupons.validate(code, asker=_asker(services, key, None))
    if coupon.state == "expired":
        raise Gone("coupon_expired", "the coupon's time is over")
    if coupon.state == "redeemed":
        raise Conflict("already_redeemed", "this coupon has been redeemed")
    headers = {"Cache-Control": "no-store"}
    return Response(qr_svg(services.coupons.token_of(coupon)), headers=headers, media_type="image/svg+xml")


@router.post(
    "/v1/coupons/{code}/reserve",
    dependencies=[Depends(Allow("pos"))],
    openapi_extra=accepts(
        ReserveRequest,
        {
            "till 3": ReserveRequest(store="graben", redemption_id=_REDEMPTION),
            "in the store": ReserveRequest(store="graben", redemption_id=_REDEMPTION, while_in_store=True),
        },
    ),
)
async def reserve(code: str, request: Request, services: Behind, key: Key) -> Response:
    """Keep a coupon for one purchase, for `hold_s` seconds or while the customer is in the store. Repeating it makes
    it last longer.
    """
    wanted = await read(request, ReserveRequest)
    coupon = await services.coupons.reserve(
        *(code, StoreId(wanted.store), wanted.redemption_id),
        hold_s=wanted.hold_s,
        while_in_store=wanted.while_in_store,
        block=wanted.block or "",
        asker=_asker(services, key, wanted.store),
    )
    return answer(_view(coupon, StoreId(wanted.store)))


@router.post(
    "/v1/coupons/{code}/release",
    dependencies=[Depends(Allow("pos"))],
    openapi_extra=accepts(ReleaseRequest, {"till 3": ReleaseRequest(store="graben", redemption_id=_REDEMPTION)}),
)
async def release(code: str, request: Request, services: Behind, key: Key) -> Response:
    """End a reservation: the customer puts the thing back. One that is over already is the same success."""
    wanted = await read(request, ReleaseRequest)
    where, store = _asker(services, key, wanted.store), StoreId(wanted.store)
    return answer(_view(await services.coupons.release(code, store, wanted.redemption_id, asker=where), store))


@router.post(
    "/v1/coupons/{code}/redeem",
    dependencies=[Depends(Allow("pos"))],
    openapi_extra=accepts(
        RedeemRequest,
        {
            "till 3": RedeemRequest(store="graben", redemption_id=_REDEMPTION, revenue_cents=2_490, discount_cents=374),
            "without sums": RedeemRequest(store="graben", redemption_id=_REDEMPTION),
        },
    ),
)
async def redeem(code: str, request: Request, services: Behind, key: Key) -> Response:
    """Redeem a coupon, once. Repeating the same redemption is the same success."""
    wanted = await read(request, RedeemRequest)
    coupon = await services.coupons.redeem(
        *(code, StoreId(wanted.store), wanted.redemption_id),
        revenue_cents=wanted.revenue_cents,
        discount_cents=wanted.discount_cents,
        block=wanted.block or "",
        asker=_asker(services, key, wanted.store),
    )
    # The coupon is redeemed by now. If the log is away, the till gets 503, repeats, and the receipt is written then.
    await _tell_redeemed(services, coupon)
    return answer(_view(coupon, StoreId(wanted.store)))


@router.post(
    "/v1/coupons/{code}/rollback",
    dependencies=[Depends(Allow("pos"))],
    openapi_extra=accepts(RollbackRequest, {"till 3": RollbackRequest(redemption_id=_REDEMPTION, store="graben")}),
)
async def rollback(code: str, request: Request, services: Behind, key: Key) -> Response:
    """Call a redemption off: the purchase was cancelled, what was bought came back, or it is not known whether
    redeeming worked. The coupon is as good as before, for as long as its time lasts; the redemption id is not.
    """
    wanted = await read(request, RollbackRequest)
    store = None if wanted.store is None else StoreId(wanted.store)
    where = _asker(services, key, wanted.store)
    coupon, called_off = await services.coupons.rollback(code, wanted.redemption_id, store, asker=where)
    if called_off is not None:
        offer = coupon.offer
        message = message_id(offer.decision, "customer")
        await services.receipt(offer.customer, message, offer.decision, "rolled_back", None, "", called_off)
    return answer(_view(coupon, store))


@router.post(
    "/v1/stores/{store}/blocks",
    dependencies=[Depends(Allow("pos"))],
    openapi_extra=accepts(BlockRequest, {"tonight": BlockRequest(id="graben-2026-11-22", for_s=28_800)}),
)
async def take_block(store: str, request: Request, services: Behind) -> Response:
    """Hand a store's newest coupons to its tills, which can then redeem them without us. Taken again it is the same
    block.
    """
    wanted = await read(request, BlockRequest)
    where = StoreId(checked_id(store, "store"))
    block = await services.blocks.take(wanted.id, where, wanted.for_s, wanted.most)
    return answer(BlockAnswer(block=block, token=services.blocks.sign(block)))


@router.post(
    "/v1/blocks/{block}/merge",
    dependencies=[Depends(Allow("pos"))],
    openapi_extra=accepts(
        MergeRequest,
        {
            "one, and that is all": MergeRequest(
                redemptions=[
                    OfflineRedemption(
                        code="7ZK1M-9QH2V-RC4XW-T0B8E", redemption_id=_REDEMPTION, at_ms=1_795_348_800_000
                    )
                ],
                close=True,
            )
        },
    ),
)
async def merge(block: str, request: Request, services: Behind) -> Response:
    """Record what was redeemed offline: all at once or in parts, repeated as often as it takes."""
    wanted = await read(request, MergeRequest)
    name = checked_id(block, "block")
    merged = await services.blocks.merge(name, wanted.redemptions)
    for each in merged:
        if each.coupon is not None:
            await _tell_redeemed(services, each.coupon)
    if wanted.close:
        await services.blocks.close(name)
    return answer(Verdicts(verdicts=[each.verdict for each in merged]))


async def _tell_redeemed(services: Services, coupon: Coupon) -> None:
    offer = coupon.offer
    redemption = Redemption(
        redemption_id=coupon.redemption_id or "",
        revenue_cents=coupon.revenue_cents,
        discount_cents=coupon.discount_cents,
        store=coupon.redeemed_store,
    )
    message = message_id(offer.decision, "customer")
    await services.receipt(offer.customer, message, offer.decision, "redeemed", None, "", redemption)


def _asker(services: Services, key: str | None, store: str | None) -> str:
    return asker(key, store, services.coupons.places)


def _view(coupon: Coupon, store: StoreId | None, token: str = "") -> CouponView:
    """As a till of this store may see it: of another store's purchase it learns no more than that it was there."""
    offer = coupon.offer
    own = store is not None and store in (coupon.redeemed_store, coupon.held_store)
    return CouponView(
        code=coupon.code,
        state=coupon.state,
        promotion=offer.promotion,
        expires_ms=offer.expires_ms,
        applied_ms=coupon.applied_ms,
        store=offer.store,
        sku=offer.sku,
        discount=offer.discount,
        exclusive=offer.exclusive,
        group=offer.group,
        this_store=offer.this_store,
        min_purchase_cents=offer.min_purchase_cents,
        redemption_id=coupon.redemption_id if own else None,
        redeemed_ms=coupon.redeemed_ms,
        redeemed_store=coupon.redeemed_store,
        revenue_cents=coupon.revenue_cents if own else None,
        discount_cents=coupon.discount_cents if own else None,
        held_store=coupon.held_store,
        held_until_ms=coupon.held_until_ms,
        while_in_store=coupon.while_in_store,
        block=coupon.block,
        block_until_ms=coupon.block_until_ms,
        token=token,
    )
