"""Signed coupons, verified by nothing but the published keys; the QR code, read by a reader that isn't ours."""

import base64
import hashlib
import json
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio import Redis

from nearcast.clock import ManualClock
from nearcast.coupons import COUPON_TYPE, CouponClaims
from nearcast.errors import NotFound
from nearcast.ids import CouponCode, CustomerId, DecisionId, PromotionId, StoreId
from nearcast.world import Discount
from server.coupon_signing import CouponSigner
from server.coupons import AppliedOffer, CouponBook

CODE = CouponCode("7ZK1M9QH2VRC4XWT0B8E")
CLAIMS = CouponClaims(code=CODE, promotion="coffee", exp=1_795_348_800, discount=Discount(percent=15))


def by_hand(jwks: bytes, token: str) -> dict[str, Any]:
    """A token checked as RFC 7515 and RFC 8037 say, without a JWT library."""

    def unpacked(part: str) -> bytes:
        return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))

    header, payload, signature = token.split(".")
    kid = json.loads(unpacked(header))["kid"]
    (key,) = (key for key in json.loads(jwks)["keys"] if key["kid"] == kid)
    assert (key["kty"], key["crv"], key["alg"]) == ("OKP", "Ed25519", "EdDSA")
    public = Ed25519PublicKey.from_public_bytes(unpacked(key["x"]))
    public.verify(unpacked(signature), f"{header}.{payload}".encode())
    claims: dict[str, Any] = json.loads(unpacked(payload))
    return claims


def test_verified_by_the_published_keys_alone() -> None:
    """By hand and by PyJWT's own reading of the key set; what it says is what was signed, and nobody's name."""
    signer = CouponSigner(b"a secret")
    token = signer.sign(COUPON_TYPE, CLAIMS)
    said = {"code": CODE, "promotion": "coffee", "exp": 1_795_348_800, "discount": {"percent": 15.0}}
    assert by_hand(signer.jwks, token) == said
    key_set = jwt.PyJWKSet.from_json(signer.jwks.decode())
    key = key_set[jwt.get_unverified_header(token)["kid"]]
    assert jwt.decode(token, key, algorithms=["EdDSA"], options={"verify_exp": False}) == said
    assert b'"d"' not in signer.jwks


def test_the_same_everywhere() -> None:
    """Every process derives the same keys and makes the same token; another secret or name makes others."""
    token = CouponSigner(b"a secret").sign(COUPON_TYPE, CLAIMS)
    assert CouponSigner(b"a secret").sign(COUPON_TYPE, CLAIMS) == token
    others = [CouponSigner(b"another secret"), CouponSigner(b"a secret", ["2"])]
    assert all(other.code_in(token) is None for other in others)


def test_rotation() -> None:
    """A new key signs, the old one is believed and published as long as its name is there, and no longer."""
    old, new, after = (CouponSigner(b"a secret", names) for names in (["1"], ["2", "1"], ["2"]))
    token = old.sign(COUPON_TYPE, CLAIMS)
    assert new.code_in(token) == CODE
    assert by_hand(new.jwks, token)["code"] == CODE
    fresh = new.sign(COUPON_TYPE, CLAIMS)
    assert old.code_in(fresh) is None
    assert after.code_in(fresh) == CODE
    assert after.code_in(token) is None


@given(at=st.integers(0, 10_000), flip=st.integers(1, 255))
def test_a_changed_byte(at: int, flip: int) -> None:
    """A token with any byte of header, claims or signature changed is none of ours."""
    signer = CouponSigner(b"a secret")
    parts = [bytearray(base64.urlsafe_b64decode(p + "=" * (-len(p) % 4))) for p in
             signer.sign(COUPON_TYPE, CLAIMS).split(".")]  # fmt: skip
    part = parts[at % 3]
    part[at // 3 % len(part)] ^= flip
    token = ".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in parts)
    assert signer.code_in(token) is None


def test_other_tokens() -> None:
    """What is signed by other means, for other ends, or not at all is no coupon."""
    signer = CouponSigner(b"a secret")
    public = json.loads(signer.jwks)["keys"][0]
    header = {"kid": public["kid"], "typ": COUPON_TYPE}
    claims = {"code": CODE, "promotion": "coffee", "exp": 1}
    symmetric = jwt.encode(claims, hashlib.sha256(public["x"].encode()).hexdigest(), "HS256", headers=header)
    unsigned = jwt.encode(claims, None, algorithm="none", headers=header)
    for token in (signer.sign("nearcast-block", CLAIMS), symmetric, unsigned, "..", "a.b.c", "é.é.é"):
        assert signer.code_in(token) is None


async def test_a_token_is_as_good_as_its_code(redis: Redis) -> None:
    """In every step of a till; also late, when the book says that the time is over, or that it was redeemed."""
    clock = ManualClock()
    book = CouponBook(redis, b"a secret", clock, key_names=["1"])
    offer = AppliedOffer(
        customer=CustomerId("anna"),
        decision=DecisionId("d-1"),
        promotion=PromotionId("coffee"),
        expires_ms=clock.now_ms() + 60_000,
        store=StoreId("graben"),
        discount=Discount(percent=15),
        exclusive=True,
        group="g",
        this_store=True,
        min_purchase_cents=100,
    )
    coupon = await book.apply(offer)
    token = book.token_of(coupon)
    assert "anna" not in str(by_hand(book.signer.jwks, token))
    assert (await book.reserve(token, StoreId("graben"), "r-1")).code == coupon.code
    assert (await book.redeem(token, StoreId("graben"), "r-1")).state == "redeemed"
    clock.advance(60_000)
    assert (await book.redeem(token, StoreId("graben"), "r-1")).state == "redeemed"
    for forged in (CouponBook(redis, b"another secret", clock).token_of(coupon), token[:-4] + "AAAA"):
        with pytest.raises(NotFound) as unknown:
            await book.validate(forged)
        assert unknown.value.reason == "unknown_coupon"
