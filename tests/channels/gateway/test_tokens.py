"""Tokens: what is accepted, and that nothing else is."""

import base64
import json
from typing import Any

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from channels.gateway.tokens import LEEWAY_S, TokenExpired, Tokens
from nearcast.clock import ManualClock
from nearcast.errors import ConfigurationError, Unauthenticated
from tests.channels.gateway.support import SECRET

NOW_S = 1_750_000_000


def tokens() -> Tokens:
    return Tokens(SECRET, ManualClock(NOW_S * 1000))


def signed(secret: bytes = SECRET, algorithm: str = "HS256", **changes: Any) -> str:
    claims = {"sub": "c1", "role": "customer", "iat": NOW_S, "exp": NOW_S + 60, **changes}
    kept = {name: value for name, value in claims.items() if value is not None}
    return jwt.encode(kept, secret, algorithm=algorithm)


def test_what_is_minted_verifies() -> None:
    """A customer's own channel comes first and once; staff and demo get what is listed."""
    mine = tokens().verify(tokens().mint("c1", "customer", ttl_s=60, channels=("news", "customer:c1")))
    assert mine.identity.channels == ("customer:c1", "news")
    assert mine.expires_ms == (NOW_S + 60) * 1000
    staff = tokens().verify(tokens().mint("ann", "staff", ttl_s=60, channels=("staff:s1",)))
    assert staff == (("ann", "staff", ("staff:s1",), ""), (NOW_S + 60) * 1000, NOW_S * 1000)
    assert tokens().verify(tokens().mint("page", "demo", ttl_s=60)).identity.channels == ()


def test_a_token_expires() -> None:
    """After `exp` and a small leeway the token is expired, which is not the same as invalid."""
    clock = ManualClock(NOW_S * 1000)
    good = Tokens(SECRET, clock)
    token = good.mint("c1", "customer", ttl_s=60)
    clock.advance((60 + LEEWAY_S) * 1000)
    good.verify(token)
    clock.advance(1)
    with pytest.raises(TokenExpired):
        good.verify(token)


def unsigned() -> str:
    header, _, _ = signed().partition(".")
    del header
    parts = [{"alg": "none", "typ": "JWT"}, {"sub": "c1", "role": "customer", "iat": NOW_S, "exp": NOW_S + 60}]
    return ".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in parts) + "."


@pytest.mark.parametrize(
    "token",
    [
        "",
        "a.b.c",
        "." * 3000,
        base64.urlsafe_b64encode(b"[" * 2900).decode() + ".e30.AAAA",
        "x" * 100_000,
        "\ud800.b.c",
        unsigned(),
        signed(secret=b"somebody else's secret, also 32 bytes long"),
        signed(algorithm="HS512", secret=SECRET * 2),
        signed(sub=None),
        signed(exp=None),
        signed(iat=None),
        signed(role=None),
        signed(role="admin"),
        signed(sub=""),
        signed(sub="c1\nx"),
        signed(sub="c" * 129),
        signed(exp=10**30),
        signed(exp="soon"),
        signed(aud="somewhere else"),
        signed(channels=["a\nb"]),
        signed(channels="customer:c2"),
        signed(channels=[f"c{n}" for n in range(33)]),
    ],
    ids=range(23),
)
def test_anything_else_is_invalid(token: str) -> None:
    """Not signed by us with HS256, not complete, out of range, for another audience: all refused."""
    with pytest.raises(Unauthenticated) as caught:
        tokens().verify(token)
    assert not isinstance(caught.value, TokenExpired)


@pytest.mark.parametrize("token", [signed(iat=NOW_S + 3600), signed(nbf=NOW_S + 3600)])
def test_a_token_of_the_future_is_refused_for_now(token: str) -> None:
    """As one that has expired, so that a client tries again: some clock is slow."""
    with pytest.raises(TokenExpired):
        tokens().verify(token)


@given(st.text() | st.from_regex(r"[A-Za-z0-9_-]{0,40}\.[A-Za-z0-9_-]{0,40}\.[A-Za-z0-9_-]{0,40}", fullmatch=True))
def test_no_text_raises_anything_else(token: str) -> None:
    """Whatever the text, verifying fails with `Unauthenticated`."""
    with pytest.raises(Unauthenticated):
        tokens().verify(token)


def test_a_short_secret_stops_the_start() -> None:
    """A secret that could be guessed is a configuration error, not a warning."""
    with pytest.raises(ConfigurationError):
        Tokens(b"short", ManualClock())
