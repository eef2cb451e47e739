"""Signed coupons: what a till can check with public keys alone, and the QR code that carries it.

A token is a compact JWS (RFC 7515) with EdDSA over Ed25519 (RFC 8037). The keys are derived from the coupon secret and
a name each, so every process has the same ones and none is stored: the first name signs, all of them verify, and all
public keys are published (JWKS, RFC 7517). To rotate, put a new name first; take an old one away once the coupons that
it signed are over, or at once if its key got known.

A token names no customer. What it says was so when it was signed; whether the coupon is still good only the book knows.
"""

import base64
import hashlib
import hmac
import io
import json
from collections.abc import Sequence
from typing import Any

import jwt
import msgspec
import segno
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from jwt.algorithms import OKPAlgorithm

from nearcast.coupons import COUPON_TYPE, CouponClaims
from nearcast.ids import CouponCode


class CouponSigner:
    """Signs and verifies, with keys derived from `secret` for each of `names`; the first one signs."""

    def __init__(self, secret: bytes, names: Sequence[str] = ("1",)) -> None:
        self._keys: dict[str, Ed25519PrivateKey] = {}
        published: list[dict[str, str]] = []
        for name in names:
            seed = hmac.new(secret, b"coupon signing key\x00" + name.encode(), hashlib.sha256).digest()
            key = Ed25519PrivateKey.from_private_bytes(seed)
            public = OKPAlgorithm.to_jwk(key.public_key(), as_dict=True)
            # RFC 7638: the key's thumbprint is its id, cut to what a QR code need not feel.
            canonical = json.dumps({member: public[member] for member in ("crv", "kty", "x")}, separators=(",", ":"))
            digest = hashlib.sha256(canonical.encode()).digest()
            kid = base64.urlsafe_b64encode(digest).decode()[:12]
            self._keys[kid] = key
            published.append(
                {"kty": "OKP", "crv": "Ed25519", "x": public["x"], "kid": kid, "alg": "EdDSA", "use": "sig"}
            )
        self._kid = published[0]["kid"]
        #: The public keys as a JWKS document.
        self.jwks = msgspec.json.encode({"keys": published})

    def sign(self, kind: str, claims: msgspec.Struct) -> str:
        """A token of this kind. The same claims and key make the same token."""
        payload: dict[str, Any] = msgspec.to_builtins(claims)
        return jwt.encode(payload, self._keys[self._kid], algorithm="EdDSA", headers={"kid": self._kid, "typ": kind})

    def code_in(self, token: str) -> CouponCode | None:
        """The code in a coupon's token; None if it isn't one of ours.

        Not asked is whether its time is over: the book knows that, and a till that repeats a redemption late must hear
        that it was one.
        """
        try:
            header = jwt.get_unverified_header(token)
            if header.get("typ") != COUPON_TYPE:
                return None
            public = self._keys[str(header.get("kid"))].public_key()
            claims = jwt.decode(token, public, algorithms=["EdDSA"], options={"verify_exp": False})
            return msgspec.convert(claims, CouponClaims).code
        except (jwt.PyJWTError, KeyError, msgspec.ValidationError, ValueError):
            return None


def qr_svg(token: str) -> str:
    """A token as a QR code: an SVG image, black on white with its quiet zone, that scales to whatever it is put in."""
    image = io.BytesIO()
    segno.make_qr(token, error="l").save(image, kind="svg", xmldecl=False, border=4, light="#fff", omitsize=True)
    return image.getvalue().decode()
