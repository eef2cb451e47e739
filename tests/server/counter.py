"""A decision taken and committed on a real store, its message in the outbox, and all that may become of it then."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from redis.asyncio import Redis

from channels.gateway.streams import ChannelStreams
from nearcast.clock import ManualClock
from nearcast.events import Cart, Profile
from nearcast.ids import CustomerId
from nearcast.messages import Message
from offers.policy import Policy
from server.announcing import SILENT, Announcer
from server.api.links import LinkSigner
from server.consents import OptOuts
from server.coupons import CouponBook
from server.deliveries import DeliveryDesk
from server.intake import Intake
from server.log.streams import StreamsLog
from server.recalls import Recaller
from server.state import StateStore
from server.world import WorldStore
from tests.server.rig import PARTITIONS, Playback, committed, engine_on, records_of
from tests.server.test_engine import consent, fix
from tests.server.town import WORLD

NOW = 1_795_000_000_000
ANN = CustomerId("ann")


class Counter:
    """A decision taken and committed, waiting in the outbox; and the desk that the dispatcher asks."""

    def __init__(
        self, redis: Redis, world: WorldStore, log: StreamsLog, engine: Any, policy: Policy, announcer: Announcer
    ) -> None:
        self.redis = redis
        self.world = world
        self.clock = ManualClock(NOW + 1_000)
        self.opt_outs = OptOuts(redis, PARTITIONS)
        self.engine = engine
        self.state = StateStore(redis, PARTITIONS)
        self.coupons = CouponBook(redis, b"secret", self.clock)
        self.streams = ChannelStreams(redis, "desk", self.clock)
        intake = Intake(log, self.clock)
        self.recaller = Recaller(redis, self.state, self.coupons, self.streams, intake, announcer)
        self.desk = DeliveryDesk(
            redis=redis,
            state=self.state,
            world=world,
            opt_outs=self.opt_outs,
            coupons=self.coupons,
            recaller=self.recaller,
            log=log,
            intake=intake,
            links=LinkSigner(b"secret"),
            policy=policy,
            public_url="https://shop.example",
            clock=self.clock,
            announcer=announcer,
        )

    async def message(self) -> Message:
        (message,) = [entry for entry in (await committed(self.redis)).outbox if isinstance(entry, Message)]
        return message

    async def happens(self, *events: Any) -> None:
        await self.engine.process(records_of(events, NOW + 10_000))


@asynccontextmanager
async def open_counter(
    redis: Redis, valkey_url: str, policy: Policy | None = None, *, announcing: bool = False
) -> AsyncIterator[Counter]:
    """Ann walked past the store with beans in her cart, and consents to everything. With `announcing` other systems
    are told what she is sent."""
    log = StreamsLog(valkey_url, PARTITIONS)
    await log.start()
    world = WorldStore(redis)
    await world.put(WORLD)
    engine = engine_on(redis, Playback(), world)
    await engine.follow_assignment()
    made = Counter(redis, world, log, engine, policy or Policy(), Announcer(log) if announcing else SILENT)
    profile = Profile(id="p", uid="ann", ts=NOW, name="Ann", phone="+43660555000", email="ann@example.com")
    cart = Cart(id="c", uid="ann", ts=NOW, action="add", sku="beans")
    scopes = [consent("ann", NOW, scope) for scope in ("websocket", "sms", "email")]
    await engine.process(records_of([profile, cart, *scopes, fix("ann", NOW + 5, 80)], NOW))
    yield made
    await log.stop()
