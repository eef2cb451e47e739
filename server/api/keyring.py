"""API keys and their roles, and how often each may call.

Keys are kept as SHA-256 digests and compared in constant time against every known key, so neither memory nor timing
gives one away. Rates are per process and in memory: a bound against runaway callers, not an account.
"""

import hashlib
import hmac
from collections.abc import Iterable
from typing import Literal, get_args

import msgspec

from nearcast.clock import Clock
from nearcast.errors import ConfigurationError, TooManyRequests

Role = Literal["intake", "pos", "admin", "staff", "metrics", "reports"]
ROLES: tuple[Role, ...] = get_args(Role)


class Caller(msgspec.Struct, frozen=True):
    """Whoever holds a key: the key's digest, and what it may do."""

    digest: bytes
    roles: frozenset[Role]

    def may(self, roles: Iterable[Role]) -> bool:
        """True if one of `roles` is the caller's; an admin may do everything."""
        return "admin" in self.roles or not self.roles.isdisjoint(roles)


class KeyRing:
    """The configured keys. A key given with several roles has them all."""

    def __init__(self, pairs: Iterable[tuple[str, str]]) -> None:
        """From (role, key) pairs. Raises `ConfigurationError` for an unknown role or an empty key."""
        roles_of: dict[bytes, set[Role]] = {}
        for role, key in pairs:
            known = next((r for r in ROLES if r == role), None)
            if known is None:
                raise ConfigurationError(f"an API key has the unknown role {role!r}; known are {', '.join(ROLES)}")
            if not key:
                raise ConfigurationError(f"the API key of role {role!r} is empty")
            roles_of.setdefault(_digest(key), set()).add(known)
        self._callers = [Caller(digest, frozenset(roles)) for digest, roles in roles_of.items()]

    def caller(self, key: str) -> Caller | None:
        """Who holds this key; None if nobody."""
        digest = _digest(key)
        found = None
        for caller in self._callers:
            if hmac.compare_digest(caller.digest, digest):
                found = caller
        return found

    def has(self, role: Role) -> bool:
        """True if any key has this role."""
        return any(role in caller.roles for caller in self._callers)


class RateLimit(msgspec.Struct, frozen=True, kw_only=True):
    """A token bucket: `per_s` calls a second in the long run, `burst` at once."""

    per_s: float = 1_000.0
    burst: int = 2_000


class Buckets:
    """One token bucket per key."""

    def __init__(self, limit: RateLimit, clock: Clock) -> None:
        self._limit = limit
        self._clock = clock
        self._levels: dict[bytes, tuple[float, float]] = {}

    def take(self, caller: Caller) -> None:
        """Count one call. Raises `TooManyRequests` if the bucket is empty."""
        now_s = self._clock.monotonic_s()
        level, at_s = self._levels.get(caller.digest, (float(self._limit.burst), now_s))
        level = min(float(self._limit.burst), level + (now_s - at_s) * self._limit.per_s)
        if level < 1:
            self._levels[caller.digest] = (level, now_s)
            wait_s = (1 - level) / self._limit.per_s
            raise TooManyRequests("rate_limited", "this key has called too often", retry_after_s=wait_s)
        self._levels[caller.digest] = (level - 1, now_s)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
