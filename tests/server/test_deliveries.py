"""The re-check before a send, on a real store: what is true now decides, not what was true at the decision."""

from collections.abc import AsyncIterator
from functools import partialmethod
from typing import Any

import msgspec
import pytest
from redis.asyncio import Redis

from channels.contract import Prepared
from nearcast import keys
from nearcast.decisions import Reason
from nearcast.errors import Unavailable
from nearcast.events import Consent, Erase
from nearcast.world import Stock
from offers.policy import Policy, QuietHours
from offers.worldfile import WorldFile
from server.consents import OptOuts
from server.state import StateStore
from server.world import WorldStore
from tests.server.counter import ANN, NOW, Counter, open_counter
from tests.server.rig import PARTITIONS
from tests.server.test_engine import consent, fix
from tests.server.town import WORLD


@pytest.fixture(params=[Policy()])
async def counter(request: pytest.FixtureRequest, redis: Redis, valkey_url: str) -> AsyncIterator[Counter]:
    async with open_counter(redis, valkey_url, request.param) as made:
        yield made


async def test_all_is_well(counter: Counter) -> None:
    """The message comes back final: texts, contact points, links, and the channels the customer agreed to."""
    prepared = await counter.desk.prepare(await counter.message())
    assert isinstance(prepared, Prepared)
    assert prepared.channels == ("websocket", "sms", "email")
    outgoing = prepared.outgoing
    assert outgoing.push.title == "Espresso beans: 15% off at Graben"
    assert (outgoing.push.price_cents, outgoing.push.discount_cents) == (1_299, 194)
    assert (outgoing.phone, outgoing.email, outgoing.name) == ("+43660555000", "ann@example.com", "Ann")
    assert outgoing.link.startswith("https://shop.example/m/")
    assert outgoing.unsubscribe_link.startswith("https://shop.example/u/")


async def test_only_agreed_channels(counter: Counter) -> None:
    """A channel whose consent was withdrawn since is no longer among them."""
    await counter.happens(consent("ann", NOW + 6, "sms", granted=False))
    prepared = await counter.desk.prepare(await counter.message())
    assert isinstance(prepared, Prepared)
    assert prepared.channels == ("websocket", "email")


async def test_an_opt_out_holds_before_the_log_is_read(counter: Counter) -> None:
    """Withdrawn through the API a moment ago, not yet in the state: nothing is sent. A later grant opens up again."""
    message = await counter.message()
    await counter.opt_outs.withdraw(ANN, "all", NOW + 900)
    assert await counter.desk.prepare(message) == Reason.OPTED_OUT
    await counter.happens(Consent(id="back", uid="ann", scope="all", granted=True, ts=NOW + 2_000))
    assert isinstance(await counter.desk.prepare(message), Prepared)


async def test_left_the_place(counter: Counter) -> None:
    """They walked on: the moment is over."""
    await counter.happens(fix("ann", NOW + 20, 900))
    assert await counter.desk.prepare(await counter.message()) == Reason.LEFT


async def test_sold_out(counter: Counter) -> None:
    """The last piece went to somebody else."""
    await counter.world.put(WorldFile(stock=[Stock(store="graben", sku="beans", quantity=0)]))
    assert await counter.desk.prepare(await counter.message()) == Reason.OUT_OF_STOCK


async def test_too_late(counter: Counter) -> None:
    """The deadline has passed."""
    counter.clock.advance(3_600_000)
    assert await counter.desk.prepare(await counter.message()) == Reason.TOO_LATE


async def test_promotion_gone(counter: Counter) -> None:
    """The retailer has ended it."""
    await counter.world.remove("promotion", "abandoned")
    assert await counter.desk.prepare(await counter.message()) == Reason.PROMOTION_ENDED


async def test_a_promotion_newer_than_our_world(counter: Counter) -> None:
    """Another process has put it there, and the engine has decided by it, since this one looked last: it is sent."""
    message = await counter.message()
    await counter.world.remove("promotion", "abandoned")
    await WorldStore(counter.redis).put(WORLD)
    assert isinstance(await counter.desk.prepare(message), Prepared)


async def test_erased_between_two_reads(counter: Counter, monkeypatch: pytest.MonkeyPatch) -> None:
    """An erasure takes state and opt-out note together: whichever is read first, what was withdrawn is not sent."""
    message = await counter.message()
    await counter.opt_outs.withdraw(ANN, "all", NOW + 900)
    noted, load = OptOuts.noted, StateStore.load
    erased = False

    async def after_an_erasure(read: Any, *arguments: Any) -> Any:
        nonlocal erased
        found = await read(*arguments)
        if not erased:
            erased = True
            await counter.happens(Erase(id="x", uid="ann", ts=NOW + 7))
        return found

    monkeypatch.setattr(OptOuts, "noted", partialmethod(lambda self, who: after_an_erasure(noted, self, who)))
    monkeypatch.setattr(StateStore, "load", partialmethod(lambda self, *all_: after_an_erasure(load, self, *all_)))
    assert await counter.desk.prepare(message) in (Reason.ERASED, Reason.OPTED_OUT)
    assert erased


async def test_erased(counter: Counter) -> None:
    """Nothing is known of them any more, the opt-out note that held until then included."""
    message = await counter.message()
    await counter.opt_outs.withdraw(ANN, "all", NOW + 900)
    await counter.happens(Erase(id="x", uid="ann", ts=NOW + 7))
    assert await counter.desk.prepare(message) == Reason.ERASED
    assert await counter.redis.hgetall(keys.opt_outs(StateStore(counter.redis, PARTITIONS).partition(ANN))) == {}


async def test_a_record_that_can_not_be_read(counter: Counter) -> None:
    """The message waits, since a newer release may read it; what is said of it names nobody."""
    message = await counter.message()
    await counter.redis.set(keys.customer(StateStore(counter.redis, PARTITIONS).partition(ANN), ANN), b"\xc1")
    with pytest.raises(Unavailable, match="can't be read") as waiting:
        await counter.desk.prepare(message)
    assert ANN not in str(waiting.value)


@pytest.mark.parametrize("counter", [Policy(quiet_hours=QuietHours(starts=0, ends=1439))], indirect=True)
async def test_quiet_hours_began(counter: Counter) -> None:
    """It has become quiet since the decision."""
    assert await counter.desk.prepare(await counter.message()) == Reason.QUIET_HOURS


async def test_receipts_are_events(counter: Counter, redis: Redis) -> None:
    """A receipt is in the log when the call returns; said twice it has one id, said differently another."""
    message = await counter.message()
    for reason in ("", "", "timed out"):
        await counter.desk.receipt(message, "failed", "sms", reason)
    found = []
    async for key in redis.scan_iter(match="*:nearcast.feedback"):
        found += [msgspec.json.decode(fields[b"v"]) for _, fields in await redis.xrange(key)]
    assert [receipt["status"] for receipt in found] == ["failed"] * 3
    assert len({receipt["id"] for receipt in found}) == 2
