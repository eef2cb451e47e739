"""What every role of a process shares: store, log and what stands on them, opened and closed in order."""

import socket
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from redis.asyncio import Redis

from channels.gateway.streams import ChannelStreams
from models.fallback import Limits
from nearcast import topics
from nearcast.clock import Clock, SystemClock
from nearcast.fold import FoldRules
from nearcast.ids import StoreId
from nearcast.world import Cap
from offers.policy import Policy, QuietHours
from server.announcing import SILENT, Announcer
from server.api.links import LinkSigner
from server.consents import OptOuts
from server.coupon_guard import Guard
from server.coupons import CouponBook
from server.credentials import Secrets, secrets_for
from server.intake import Intake
from server.live_models import LiveModels
from server.log.base import EventLog
from server.log.kafka import KafkaLog, KafkaOptions
from server.log.leases import forget_predecessors
from server.log.streams import StreamsLog
from server.model_registry import ModelRegistry
from server.provenance import check_provenance, note_provenance
from server.settings import Settings, parse_quiet_hours
from server.state import StateStore
from server.store import client_of, reaching_store
from server.valkey import EmbeddedValkey
from server.world import WorldStore
from server.world_files import read_worlds


@dataclass(frozen=True)
class Core:
    """What every role shares. The engine reads and commits over connections of its own (`server.roles`)."""

    settings: Settings
    secrets: Secrets
    clock: Clock
    redis_url: str
    #: The store's server, if it is ours.
    valkey: EmbeddedValkey | None
    redis: Redis
    log: EventLog
    state: StateStore
    world: WorldStore
    models: LiveModels
    intake: Intake
    opt_outs: OptOuts
    streams: ChannelStreams
    links: LinkSigner
    coupons: CouponBook
    policy: Policy
    announcer: Announcer
    node: str

    @property
    def public_url(self) -> str:
        return self.settings.public_url.rstrip("/") or f"http://{self.settings.api_host}:{self.settings.api_port}"


@asynccontextmanager
async def open_core(settings: Settings) -> AsyncIterator[Core]:
    """Store, log and what stands on them; everything is closed again afterwards, in reverse order."""
    async with AsyncExitStack() as stack:
        secrets = secrets_for(settings)
        clock = SystemClock()
        valkey = None
        if settings.redis_url is not None:
            redis_url = settings.redis_url.get_secret_value()
        else:
            valkey = EmbeddedValkey(settings.data_dir)
            await valkey.start()
            stack.push_async_callback(valkey.stop)
            redis_url = valkey.url
        redis = client_of(redis_url)
        stack.push_async_callback(redis.aclose)
        with reaching_store():
            await redis.ping()
        if settings.redis_url is None:
            await forget_predecessors(redis)
        await check_provenance(redis, settings)
        log = log_of(settings, redis_url)
        await log.start()
        stack.push_async_callback(log.stop)
        await note_provenance(redis, settings)
        # The owner of a data directory is alone with its store, so after a crash it may take up its old name, and with
        # it what it had begun. Processes that share a store need names of their own (in containers all are pid 1).
        node = f"{socket.gethostname()}-{uuid.uuid4().hex[:12]}" if settings.redis_url else "embedded"
        registry = ModelRegistry(redis, clock, settings.model_budget_ms / 1000)
        models = LiveModels(redis, registry, settings.model_dir, limits_of(settings), clock)
        await models.start()
        world = WorldStore(redis)
        await world.refresh()
        if settings.world_files:
            await world.put(read_worlds(settings.world_files))
        yield Core(
            settings=settings,
            secrets=secrets,
            clock=clock,
            redis_url=redis_url,
            valkey=valkey,
            redis=redis,
            log=log,
            state=StateStore(redis, settings.partitions, settings.dead_letters_limit, settings.footfall_days),
            world=world,
            models=models,
            intake=Intake(log, clock),
            opt_outs=OptOuts(redis, settings.partitions),
            streams=ChannelStreams(redis, node, clock),
            links=LinkSigner(secrets.link.encode()),
            coupons=coupon_book_of(settings, secrets, redis, world, clock),
            policy=policy_of(settings),
            announcer=Announcer(log) if settings.promotions_topic else SILENT,
            node=node,
        )


def policy_of(settings: Settings) -> Policy:
    """The retailer-wide rules that the settings ask for."""
    quiet = parse_quiet_hours(settings.quiet_hours)
    return Policy(
        caps=(Cap(count=settings.offers_per_day, period_s=86_400), *settings.caps),
        quiet_hours=QuietHours(starts=quiet[0], ends=quiet[1]) if quiet else None,
        max_doubt=settings.max_doubt,
        annoyance_cents=settings.annoyance_cents,
        annoyance_window_ms=round(settings.annoyance_window_s * 1000),
        exploration=settings.exploration,
        holdout=settings.holdout,
        holdout_salt=settings.holdout_salt,
        best_channel_first=settings.channel_order == "learned",
        personal_prices=settings.personal_prices,
    )


def coupon_book_of(settings: Settings, secrets: Secrets, redis: Redis, world: WorldStore, clock: Clock) -> CouponBook:
    """The coupon book, with the bounds that the settings ask for."""

    def place_of(store: StoreId) -> tuple[float, float] | None:
        known = world.current.catalogue.stores.get(store)
        return None if known is None else (known.lat, known.lng)

    guard = Guard(
        most_unknown=settings.coupon_unknown_codes,
        unknown_window_s=settings.coupon_unknown_window_s,
        applies_per_hour=settings.coupons_applied_per_hour,
        redemptions_per_hour=settings.coupons_redeemed_per_hour,
        most_km_per_h=settings.coupon_km_per_h,
    )
    return CouponBook(
        redis, secrets.coupon.encode(), clock, guard=guard, places=place_of, key_names=settings.coupon_keys
    )


def fold_rules_of(settings: Settings) -> FoldRules:
    """What the settings say about the fold."""
    return FoldRules(
        cart_abandoned_after_ms=round(settings.cart_abandoned_after_s * 1000),
        late_after_ms=round(settings.late_after_s * 1000),
    )


def limits_of(settings: Settings) -> Limits:
    """What a model may take, and what stands in for it."""
    return Limits(
        budget_s=settings.model_budget_ms / 1000,
        pause_s=settings.model_pause_s,
        fallback_score=settings.model_fallback_score,
    )


def log_of(settings: Settings, redis_url: str) -> EventLog:
    """The event log that the settings ask for, not started yet."""
    if settings.kafka is None:
        return StreamsLog(redis_url, settings.partitions, instance_id=settings.instance_id)
    password = settings.kafka_password
    options = KafkaOptions(
        bootstrap=settings.kafka,
        security_protocol=settings.kafka_security_protocol,
        sasl_mechanism=settings.kafka_sasl_mechanism,
        sasl_username=settings.kafka_username,
        sasl_password=password.get_secret_value() if password else None,
        replication=settings.kafka_replication,
        ssl_ca_file=str(settings.kafka_ca_file) if settings.kafka_ca_file else None,
        idempotent=settings.kafka_idempotent,
        instance_id=settings.instance_id,
        create_topics=settings.kafka_create_topics,
    )
    written = (topics.SENT,) if settings.promotions_topic else ()
    return KafkaLog(options, settings.partitions, other_topics=(*topics.CATALOGUE_TOPICS, *written))
