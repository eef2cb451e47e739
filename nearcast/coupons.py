"""Coupons on the wire: what is signed for tills that verify by themselves, and what passes between us and offline ones.

A token is a compact JWS with EdDSA; its header's `typ` says which of these its payload is.
"""

import hashlib

import msgspec

from nearcast.events import Cents, Id, Milliseconds
from nearcast.ids import CouponCode
from nearcast.world import Discount

COUPON_TYPE = "nearcast-coupon"
BLOCK_TYPE = "nearcast-block"


class CouponClaims(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a coupon's token says. `exp` is in seconds since 1970, rounded down."""

    code: CouponCode
    promotion: Id
    exp: int
    store: Id | None = None
    sku: Id | None = None
    discount: Discount | None = None
    exclusive: bool = False
    group: Id | None = None
    this_store: bool = False
    min_purchase_cents: Cents = 0


class BlockCoupon(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One coupon of a block; `hash` is that of its code (`hash_of`)."""

    hash: str
    promotion: Id
    expires_ms: Milliseconds
    sku: Id | None = None
    discount: Discount | None = None
    exclusive: bool = False
    group: Id | None = None
    min_purchase_cents: Cents = 0


class Block(msgspec.Struct, frozen=True, kw_only=True):
    """Coupons that are handed to a store's tills. Its token says the same."""

    block: Id
    store: Id
    #: Until then its coupons may be redeemed offline; from `free_ms` on by anybody.
    until_ms: Milliseconds
    free_ms: Milliseconds
    coupons: list[BlockCoupon]


class OfflineRedemption(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a till redeemed without us: `code` (or the coupon's token), for which purchase and when."""

    code: str
    redemption_id: Id
    at_ms: Milliseconds
    revenue_cents: Cents | None = None
    discount_cents: Cents | None = None


class Verdict(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What became of an offline redemption: "redeemed", or the reason why it could not be recorded.

    `broke` is of one that was recorded, and should not have been made: the reason why.
    """

    redemption_id: str
    verdict: str
    detail: str = ""
    broke: str = ""


class Verdicts(msgspec.Struct, frozen=True, kw_only=True):
    """A verdict for each redemption of a merge, in the order given."""

    verdicts: list[Verdict]


def hash_of(code: CouponCode) -> str:
    """What stands for a code in a block: SHA-256 over its 20 characters, in hexadecimal."""
    return hashlib.sha256(code.encode()).hexdigest()
