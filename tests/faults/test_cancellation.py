"""R12: a storm of cancelled commands over a slow line: reply i answers request i, or nobody."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from random import Random

import httpx
import msgspec
import pytest
from redis.asyncio.connection import AbstractConnection

from channels.gateway.publications import Position
from channels.gateway.streams import ChannelStreams
from nearcast import keys
from nearcast.clock import SystemClock
from nearcast.errors import Unavailable
from nearcast.ids import CustomerId, DecisionId, PromotionId, partition_of
from server.consents import OptOuts
from server.coupons import AppliedOffer, CouponBook
from server.store import client_of, text
from tests.faults.proxy import delaying
from tests.faults.rig import Rig
from tests.faults.traffic import PARTITIONS
from tests.faults.worker import keep_connections_of_cancelled_commands
from tests.services.valkey import ValkeyProcess

_PEOPLE = 50
_CALLERS = 24
_CALLS = 1_500
#: How long a reply takes. Half of the calls are patient; the others are let go of while they wait for one.
_DELAY_S = 0.003

#: Asks about the n-th customer; what the answer says of whom it is about.
Ask = Callable[[int], Awaitable[str]]


@pytest.fixture
async def valkey(tmp_path: Path) -> AsyncIterator[ValkeyProcess]:
    process = ValkeyProcess(tmp_path)
    process.start()
    yield process
    process.stop()


async def test_cancelled_commands_leave_no_reply_to_the_next_one(valkey: ValkeyProcess, seed: int) -> None:
    """Coupons, notes and channels, all over one client, half of the callers impatient."""
    answers = await _storm_on_the_store(valkey, seed, calls=_CALLS)
    assert answers["crossed"] == 0, answers
    assert answers["right"] > _CALLS / 5
    assert answers["cancelled"] > _CALLS / 5


async def test_the_storm_finds_connections_that_are_used_again(
    valkey: ValkeyProcess, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R21: a client that keeps the connection of a cancelled command gives the next one its reply."""
    monkeypatch.setattr(AbstractConnection, "read_response", AbstractConnection.read_response)
    keep_connections_of_cancelled_commands()
    assert (await _storm_on_the_store(valkey, seed, calls=_CALLS))["crossed"] > 0


@pytest.mark.long
@pytest.mark.kafka
async def test_clients_that_hang_up_on_the_api_disturb_nobody(rig: Rig) -> None:
    """Half of the requests are given up while the API waits for its store: every answer is about whom was asked."""
    engine = rig.add("engine", "engine")
    await rig.start(engine)
    town = rig.round(of_each=10)
    await rig.produce(town.sign_up)
    await rig.quiet(dispatched=False)
    people = sorted({record.key for record in town.sign_up})
    async with delaying(rig.valkey.port, _DELAY_S, rig.seed) as proxy:
        front = rig.add("front", "api", store_url=f"redis://127.0.0.1:{proxy.port}/0")
        await rig.start(front)
        async with rig.http("admin") as http:

            async def ask(n: int) -> str:
                answer = await http.get(f"/v1/customers/{people[n % len(people)]}")
                answer.raise_for_status()
                return str(people.index(answer.json()["customer"]["id"]))

            answers = await _storm([ask], len(people), Random(rig.seed), calls=800, patience_s=20 * _DELAY_S)
        rig.history.note("answers", **answers)
        await front.stop()
    assert answers["crossed"] == 0
    assert answers["right"] > 80
    assert answers["cancelled"] > 80


async def _storm_on_the_store(valkey: ValkeyProcess, seed: int, calls: int) -> Counter[str]:
    async with delaying(valkey.port, _DELAY_S, seed) as proxy:
        redis = client_of(f"redis://127.0.0.1:{proxy.port}/0")
        clock = SystemClock()
        book = CouponBook(redis, b"a secret of the storm, long enough", clock)
        streams = ChannelStreams(redis, "node", clock)
        opt_outs = OptOuts(redis, PARTITIONS)
        people = [CustomerId(str(n)) for n in range(_PEOPLE)]
        expires_ms = clock.now_ms() + 3_600_000

        async def coupon(n: int) -> str:
            decision = DecisionId(f"d{n}")
            offer = AppliedOffer(
                customer=people[n], decision=decision, promotion=PromotionId("p"), expires_ms=expires_ms
            )
            return (await book.apply(offer)).offer.customer

        async def channel(n: int) -> str:
            at = await streams.publish_once(f"c{n}", "once", b"%d" % n)
            found = await streams.read(f"c{n}", Position(at.epoch, 0))
            return found.publications[0].data.decode()

        async def note(n: int) -> str:
            await opt_outs.withdraw(people[n], "sms", 1_000_000 + n)
            found = await redis.hget(keys.opt_outs(partition_of(people[n], PARTITIONS)), people[n])
            return str(msgspec.json.decode(found or b"", type=dict[str, int])["sms"] - 1_000_000)

        async def echo(n: int) -> str:
            return text(await redis.echo(str(n)))

        try:
            return await _storm([coupon, channel, note, echo], _PEOPLE, Random(seed), calls, 4 * _DELAY_S)
        finally:
            await redis.aclose()


async def _storm(asks: list[Ask], people: int, chance: Random, calls: int, patience_s: float) -> Counter[str]:
    """Many callers at once, each with too little patience now and then; how their calls ended."""
    ends: Counter[str] = Counter()
    left = iter(range(calls))

    async def caller() -> None:
        for _ in left:
            n, ask = chance.randrange(people), chance.choice(asks)
            try:
                async with asyncio.timeout(chance.choice([None, chance.uniform(0.0, patience_s)])):
                    answer = await ask(n)
            except TimeoutError:
                ends["cancelled"] += 1
            except (Unavailable, httpx.TransportError):
                ends["refused"] += 1
            except Exception as error:  # noqa: BLE001 whatever a reply of another kind may lead to
                ends["crossed"] += 1
                ends[type(error).__name__] += 1
            else:
                ends["right" if answer == str(n) else "crossed"] += 1

    await asyncio.gather(*(caller() for _ in range(_CALLERS)))
    return ends
