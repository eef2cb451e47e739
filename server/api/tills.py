"""Coupons over HTTP: applied by the customer's app (through its server), validated and redeemed by tills.

A till learns what the coupon is good for, never whose it is. Redeeming needs a `redemption_id` that the till makes up
once per purchase and sends again when it retries.
"""

from typing import Literal

import msgspec
from fastapi import APIRouter, Depends, Request, Response

from nearcast.events import Id
from nearcast.ids import CouponCode, CustomerId, DecisionId, PromotionId, Sku, StoreId, message_id
from nearcast.world import Discount
from server.api.auth import Allow, Behind
from server.api.bodies import accepts, answer, read
from server.coupons import Coupon

router = APIRouter(tags=["coupons"])


class ApplyRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which offer, made to whom."""

    customer: Id
    decision: Id


class RedeemRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where, and the till's own name for this redemption."""

    store: Id
    redemption_id: Id


class RollbackRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The redemption to call off."""

    redemption_id: Id


class CouponView(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A coupon as a till sees it. `state` says whether it can be redeemed: only "applied" can."""

    code: CouponCode
    state: Literal["applied", "redeemed", "expired"]
    promotion: PromotionId
    expires_ms: int
    applied_ms: int
    store: StoreId | None = None
    sku: Sku | None = None
    discount: Discount | None = None
    redeemed_ms: int | None = None
    redeemed_store: StoreId | None = None
    redemption_id: str | None = None


@router.post(
    "/v1/coupons/apply",
    dependencies=[Depends(Allow("intake"))],
    openapi_extra=accepts(
        ApplyRequest, {"anna's offer": ApplyRequest(customer="anna", decision="9f86d081884c7d659a2feaa0c55ad015")}
    ),
)
async def apply(request: Request, services: Behind) -> Response:
    """The code of an offer. Applying again gives the same code."""
    wanted = await read(request, ApplyRequest)
    return answer(_view(await services.apply(CustomerId(wanted.customer), DecisionId(wanted.decision))))


@router.get("/v1/coupons/{code}", dependencies=[Depends(Allow("pos"))])
async def validate(code: str, services: Behind) -> Response:
    """What a code is good for, and whether it still is. Case, dashes, spaces and I/L/O are forgiven."""
    return answer(_view(await services.coupons.validate(code)))


@router.post(
    "/v1/coupons/{code}/redeem",
    dependencies=[Depends(Allow("pos"))],
    openapi_extra=accepts(
        RedeemRequest, {"till 3": RedeemRequest(store="graben", redemption_id="graben-3-2026-11-22-000815")}
    ),
)
async def redeem(code: str, request: Request, services: Behind) -> Response:
    """Redeem a coupon, once. Repeating the same redemption is the same success."""
    wanted = await read(request, RedeemRequest)
    coupon = await services.coupons.redeem(code, StoreId(wanted.store), wanted.redemption_id)
    # The coupon is redeemed by now. If the log is away, the till gets 503, repeats, and the receipt is written then.
    offer = coupon.offer
    message = message_id(offer.decision, "customer")
    await services.receipt(offer.customer, message, offer.decision, "redeemed", None, "")
    return answer(_view(coupon))


@router.post(
    "/v1/coupons/{code}/rollback",
    dependencies=[Depends(Allow("pos"))],
    openapi_extra=accepts(RollbackRequest, {"till 3": RollbackRequest(redemption_id="graben-3-2026-11-22-000815")}),
)
async def rollback(code: str, request: Request, services: Behind) -> Response:
    """Call a redemption off: the purchase was cancelled, or it is not known whether redeeming worked."""
    wanted = await read(request, RollbackRequest)
    return answer(_view(await services.coupons.rollback(code, wanted.redemption_id)))


def _view(coupon: Coupon) -> CouponView:
    offer = coupon.offer
    return CouponView(
        code=coupon.code,
        state=coupon.state,
        promotion=offer.promotion,
        expires_ms=offer.expires_ms,
        applied_ms=coupon.applied_ms,
        store=offer.store,
        sku=offer.sku,
        discount=offer.discount,
        redeemed_ms=coupon.redeemed_ms,
        redeemed_store=coupon.redeemed_store,
        redemption_id=coupon.redemption_id,
    )
