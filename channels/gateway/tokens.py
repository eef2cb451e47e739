"""Connection tokens: JWTs signed with HS256.

The algorithm is pinned, so a token can't choose it. A customer's token subscribes to `customer:<sub>` and to what
`channels` lists; a staff or demo token to `channels` only. A token is a credential: it is never logged.
"""

from typing import Annotated, NamedTuple

import jwt
import msgspec

from channels.gateway.backend import Identity, Role
from nearcast.clock import Clock
from nearcast.errors import ConfigurationError, Unauthenticated

ALGORITHM = "HS256"
#: RFC 7518, section 3.2: a key at least as long as the hash.
MIN_SECRET_BYTES = 32
MAX_TOKEN_BYTES = 4096
LEEWAY_S = 5

# No control characters: names are joined with line feeds on the way to the nodes.
_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f\x7f]+\Z")]
_ChannelName = Annotated[str, msgspec.Meta(min_length=1, max_length=255, pattern=r"^[^\x00-\x1f\x7f]+\Z")]
_Seconds = Annotated[int, msgspec.Meta(ge=0, le=9_999_999_999)]


class TokenExpired(Unauthenticated):
    """The token was good once, or will be: the client should fetch another one."""


class Verified(NamedTuple):
    """A good token's contents."""

    identity: Identity
    expires_ms: int
    issued_ms: int = 0


class _Claims(msgspec.Struct):
    sub: _Name
    exp: _Seconds
    iat: _Seconds
    role: Role
    channels: Annotated[list[_ChannelName], msgspec.Meta(max_length=32)] = []
    nbf: _Seconds = 0


class Tokens:
    """Mints and verifies tokens with one secret of at least 32 bytes."""

    def __init__(self, secret: bytes, clock: Clock) -> None:
        if len(secret) < MIN_SECRET_BYTES:
            raise ConfigurationError(f"the token secret must have at least {MIN_SECRET_BYTES} bytes")
        self._secret = secret
        self._clock = clock

    def mint(self, sub: str, role: Role, *, ttl_s: int, channels: tuple[str, ...] = ()) -> str:
        """A token that is valid from now for `ttl_s` seconds."""
        now_s = self._clock.now_ms() // 1000
        claims = {"sub": sub, "role": role, "channels": list(channels), "iat": now_s, "exp": now_s + ttl_s}
        return jwt.encode(claims, self._secret, algorithm=ALGORITHM)

    def verify(self, token: str) -> Verified:
        """What the token says. Raises `TokenExpired`, or `Unauthenticated` for anything else that is wrong with it."""
        if len(token) > MAX_TOKEN_BYTES:
            raise Unauthenticated("invalid_token", "the token is too long")
        try:
            # Times are checked below, by the injected clock.
            payload = jwt.decode(
                token,
                self._secret,
                algorithms=[ALGORITHM],
                options={"verify_exp": False, "verify_iat": False, "verify_nbf": False},
            )
            claims = msgspec.convert(payload, _Claims)
        except (jwt.PyJWTError, msgspec.ValidationError, ValueError, RecursionError):
            raise Unauthenticated("invalid_token", "the token is not valid") from None
        now_s = self._clock.now_ms() / 1000
        if now_s > claims.exp + LEEWAY_S:
            raise TokenExpired("token_expired", "the token has expired")
        if now_s < max(claims.nbf, claims.iat) - LEEWAY_S:
            # A clock is slow, perhaps ours: no reason for a client to give up for good.
            raise TokenExpired("token_not_valid_yet", "the token is not valid yet")
        own = (f"customer:{claims.sub}",) if claims.role == "customer" else ()
        channels = tuple(dict.fromkeys((*own, *claims.channels)))
        return Verified(Identity(claims.sub, claims.role, channels), claims.exp * 1000, claims.iat * 1000)
