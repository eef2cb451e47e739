"""Talking to Valkey or Redis: how clients are made, what their failures mean, and what types their replies have."""

from collections.abc import Iterator
from contextlib import contextmanager

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from nearcast.errors import Unavailable

#: Stands before scripts that compare times of several hosts: the store's clock is the one that they share.
NOW_MS = """
local function now_ms()
  local now = redis.call('TIME')
  return now[1] * 1000 + math.floor(now[2] / 1000)
end
"""

#: Connections of one client. While the store stalls, callers wait for one of these instead of opening ever more.
_CONNECTIONS = 64


def client_of(url: str) -> Redis:
    """A client that never repeats a command by itself: a commit whose reply was lost may have happened."""
    pool = BlockingConnectionPool.from_url(
        url,
        max_connections=_CONNECTIONS,
        timeout=10.0,
        retry=Retry(NoBackoff(), 0),
        socket_connect_timeout=5.0,
        socket_timeout=10.0,
    )
    return Redis.from_pool(pool)


@contextmanager
def reaching_store(what: str = "the state store can't be reached") -> Iterator[None]:
    """Whatever keeps us from an answer is `Unavailable`, `what` and the kind of error.

    Not the error's own words: redis-py quotes the command in them, and so who it is about.
    """
    try:
        yield
    except (RedisError, OSError) as error:
        raise Unavailable(f"{what}: {type(error).__name__}") from None


def text(reply: bytes | str) -> str:
    """A reply as text. Our clients return bytes; redis-py's types allow for both."""
    return reply.decode() if isinstance(reply, bytes) else reply


def raw(reply: bytes | str) -> bytes:
    """A reply as bytes."""
    return reply if isinstance(reply, bytes) else reply.encode()
