"""A store that answers and refuses: what is said of it, and what is never said."""

import traceback
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from redis.asyncio import Redis

from nearcast import keys
from nearcast.clock import SystemClock
from nearcast.errors import Unavailable
from nearcast.ids import CustomerId
from server.coupons import CouponBook
from server.log.base import Entry
from server.log.streams import StreamsLog
from tests.services.valkey import ValkeyProcess

TELLING = "ann@example.com"
REFUSALS = {"OutOfMemoryError": "CONFIG SET maxmemory 1", "ReadOnlyError": "REPLICAOF 127.0.0.1 1"}


@pytest.fixture
async def own(tmp_path: Path) -> AsyncIterator[ValkeyProcess]:
    """A Valkey that a test may break."""
    valkey = ValkeyProcess(tmp_path)
    valkey.start()
    yield valkey
    valkey.stop()


@pytest.mark.parametrize("refusal", REFUSALS)
async def test_whoever_a_write_is_about_is_not_named(own: ValkeyProcess, refusal: str) -> None:
    """Refused, the kind of refusal is told; the command, its keys and values are in no word and no traceback."""
    log = StreamsLog(own.url, 1)
    await log.start()
    async with Redis.from_url(own.url) as redis:
        await redis.execute_command(*REFUSALS[refusal].split())
    with pytest.raises(Unavailable, match=refusal) as raised:
        await log.append([Entry("t", TELLING, b"")])
    await log.stop()
    assert TELLING not in "".join(traceback.format_exception(raised.value))


async def test_a_store_with_something_else_in_place_of_an_index_is_unavailable(redis: Redis) -> None:
    """Whatever keeps coupons from being found: who erases waits and tries again, and does not break."""
    await redis.set(keys.coupons_of(TELLING), "not an index")
    with pytest.raises(Unavailable, match="ResponseError"):
        await CouponBook(redis, b"secret", SystemClock()).forget(CustomerId(TELLING))
