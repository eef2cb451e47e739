"""The roles of a process, built from what they share: engine, dispatcher, gateway, HTTP API.

`make_...` gives long-running parts that are not started yet; `open_...` starts a door to the outside, and has the stack
close it again.
"""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import uvicorn
from prometheus_client import start_http_server
from redis.asyncio import Redis

from channels.contract import Channel
from channels.dispatcher import Dispatcher
from channels.gateway.limits import affordable_connections
from channels.gateway.server import Gateway
from channels.gateway.settings import GatewaySettings
from channels.gateway.tokens import Tokens
from channels.mail import MailChannel, MailSettings
from channels.push import PushChannel
from channels.sms import SmsChannel, SmsSettings
from nearcast import keys, topics
from nearcast.errors import ConfigurationError
from nearcast.messages import Message
from server.api.app import create_app
from server.api.keyring import KeyRing
from server.api.links import Link
from server.backlog import watch_backlog
from server.budgets import Leases
from server.catalogue_feed import CatalogueFeed
from server.collecting import keep_looking, look_for_garbage_seldom
from server.core import Core, fold_rules_of
from server.deliveries import DeliveryDesk
from server.desk import Desk
from server.devices import DeviceBackend
from server.engine import Engine
from server.eraser import Eraser
from server.forgetting import Forgetting
from server.outbox import ValkeyOutbox
from server.recalls import Recaller
from server.state import StateStore
from server.store import client_of, reaching_store
from server.sweeper import Sweeper
from server.timers import TimerPump
from server.watchdog import Watchdog
from server.world import World, WorldStore

ENGINE_GROUP = "nearcast.engine"
CATALOGUE_GROUP = "nearcast.catalogue"
_CALLBACK_VALID_MS = 3 * 86_400_000


@dataclass(frozen=True)
class Root:
    """A long-running part. `halt` asks it to end in order; without it, it is cancelled."""

    name: str
    work: Callable[[], Coroutine[None, None, None]]
    halt: Callable[[], Awaitable[None]] | None = None


def make_desk(core: Core) -> Desk:
    settings, secrets = core.settings, core.secrets
    token = settings.sms_auth_token
    return Desk(
        redis=core.redis,
        state=core.state,
        world=core.world,
        intake=core.intake,
        log=core.log,
        coupons=core.coupons,
        opt_outs=core.opt_outs,
        streams=core.streams,
        tokens=Tokens(secrets.token.encode(), core.clock),
        keyring=KeyRing(secrets.api_keys.items()),
        links=core.links,
        models=core.models.registry,
        live_models=core.models,
        policy=core.policy,
        clock=core.clock,
        public_url=core.public_url,
        sms_auth_token=token.get_secret_value() if token else "",
        demo=settings.demo,
        web_root=Path(str(resources.files("clients").joinpath("web"))),
        footfall_k=settings.footfall_k,
        announcer=core.announcer,
    )


class _EngineWorld(WorldStore):
    """The world that the whole process follows, and the stock as the engine reads it, over its own connections."""

    def __init__(self, redis: Redis, followed: WorldStore) -> None:
        super().__init__(redis)
        self._followed = followed

    @property
    def current(self) -> World:
        return self._followed.current


def make_collector() -> Root:
    """What every process needs that keeps many customers' records or connections."""
    look_for_garbage_seldom()
    return Root("garbage collector", keep_looking)


async def make_engine(core: Core, stack: AsyncExitStack) -> list[Root]:
    settings = core.settings
    # What a batch waits for goes over connections that nobody else uses: a crowd of requests can't keep it waiting.
    redis = client_of(core.redis_url)
    stack.push_async_callback(redis.aclose)
    state = StateStore(redis, settings.partitions, settings.dead_letters_limit, settings.footfall_days)
    consumer = core.log.consumer(ENGINE_GROUP, topics.CUSTOMER_TOPICS)
    await consumer.start()
    stack.push_async_callback(consumer.stop)
    feed_consumer = core.log.consumer(CATALOGUE_GROUP, topics.CATALOGUE_TOPICS)
    await feed_consumer.start()
    stack.push_async_callback(feed_consumer.stop)
    engine = Engine(
        consumer=consumer,
        state=state,
        world=_EngineWorld(redis, core.world),
        budgets=Leases(redis, settings.partitions, core.clock),
        models=core.models,
        rules=fold_rules_of(settings),
        policy=core.policy,
        clock=core.clock,
        batch_events=settings.batch_events,
        cached_customers=settings.cached_customers,
    )
    eraser = Eraser(
        core.redis,
        settings.partitions,
        lambda: engine.partitions,
        core.coupons,
        core.clock,
        log_in_store=settings.kafka is None,
    )
    forgetting = Forgetting(
        core.redis,
        settings.partitions,
        lambda: engine.partitions,
        core.clock,
        log_in_store=settings.kafka is None,
        own_server=core.valkey is not None,
    )
    timers = TimerPump(state, core.intake, lambda: engine.partitions, core.clock)
    feed = CatalogueFeed(feed_consumer, core.world, core.redis, settings.dead_letters_limit)

    async def answering() -> None:
        await core.log.check()
        with reaching_store():
            # One that answers and refuses to write, full or a replica, is away as well.
            await redis.set(f"{keys.PREFIX}watchdog", "looked")

    dogs = [
        Watchdog(name, watched, answering, settings.stall_after_s)
        for name, watched in (("engine", consumer), ("catalogue feed", feed_consumer))
    ]
    return [
        Root("engine", engine.run),
        Root("timers", timers.run),
        Root("eraser", eraser.run),
        Root("forgetting", forgetting.run),
        Root("catalogue feed", feed.run),
        Root("engine watchdog", dogs[0].run),
        Root("catalogue watchdog", dogs[1].run),
        Root("backlog", lambda: watch_backlog(consumer, core.redis, lambda: engine.partitions)),
    ]


def make_dispatcher(core: Core, stack: AsyncExitStack) -> list[Root]:
    recaller = Recaller(core.redis, core.state, core.coupons, core.streams, core.intake, core.announcer)
    desk = DeliveryDesk(
        redis=core.redis,
        state=core.state,
        world=core.world,
        opt_outs=core.opt_outs,
        coupons=core.coupons,
        recaller=recaller,
        log=core.log,
        intake=core.intake,
        links=core.links,
        policy=core.policy,
        public_url=core.public_url,
        clock=core.clock,
        announcer=core.announcer,
    )
    channels = _channels(core)
    for channel in channels:
        stack.push_async_callback(channel.close)
    # A reader that waits needs a connection of its own.
    redis = client_of(core.redis_url)
    stack.push_async_callback(redis.aclose)
    outbox = ValkeyOutbox(redis, range(core.settings.partitions), core.node)
    stack.push_async_callback(outbox.close)
    dispatcher = Dispatcher(outbox, desk, channels, core.clock)
    sweeper = Sweeper(core.redis, core.node, core.state, core.world, recaller, core.clock)
    return [Root("dispatcher", dispatcher.run, dispatcher.stop), Root("sweeper", sweeper.run)]


def _channels(core: Core) -> list[Channel]:
    settings = core.settings
    channels: list[Channel] = [PushChannel(core.streams)]
    if settings.sms_account and settings.sms_auth_token and settings.sms_from:

        def callback(message: Message) -> str:
            link = Link(message.customer, message.decision, message.deadline_ms + _CALLBACK_VALID_MS, "sms")
            return f"{core.public_url}/v1/callbacks/sms/{core.links.sign('sms_status', link)}"

        channels.append(
            SmsChannel(
                SmsSettings(
                    account_sid=settings.sms_account,
                    auth_token=settings.sms_auth_token.get_secret_value(),
                    sender=settings.sms_from,
                    base_url=settings.sms_url,
                    callback=callback,
                )
            )
        )
    if settings.smtp_host and settings.mail_from:
        password = settings.smtp_password
        channels.append(
            MailChannel(
                MailSettings(
                    host=settings.smtp_host,
                    port=settings.smtp_port,
                    sender=settings.mail_from,
                    start_tls=settings.smtp_security == "starttls",
                    use_tls=settings.smtp_security == "tls",
                    username=settings.smtp_username or "",
                    password=password.get_secret_value() if password else "",
                ),
                core.clock,
            )
        )
    return channels


async def open_gateway(core: Core, desk: Desk, doors: AsyncExitStack) -> None:
    settings = core.settings
    gateway = Gateway(
        GatewaySettings(
            host=settings.gateway_host,
            port=settings.gateway_port,
            origins=tuple(settings.allowed_origins),
            drain_window_s=settings.gateway_drain_s,
            connections=affordable_connections() if settings.max_connections is None else settings.max_connections,
            connections_per_address=settings.connections_per_address,
            # The demo's page shows the same few people to everybody.
            connections_per_user=0 if settings.demo else GatewaySettings.connections_per_user,
            trusted_proxies=tuple(settings.trusted_proxies),
        ),
        Tokens(core.secrets.token.encode(), core.clock),
        core.streams,
        DeviceBackend(desk, core.redis, core.streams),
        core.clock,
    )
    try:
        await gateway.start()
    except OSError as error:
        raise ConfigurationError(f"NEARCAST_GATEWAY_HOST, NEARCAST_GATEWAY_PORT: {error}") from None
    doors.push_async_callback(gateway.stop)


async def open_api(core: Core, desk: Desk, doors: AsyncExitStack) -> None:
    settings = core.settings
    try:
        listening = socket.create_server(
            (settings.api_host, settings.api_port),
            family=socket.AF_INET6 if ":" in settings.api_host else socket.AF_INET,
            backlog=2048,
        )
    except OSError as error:
        raise ConfigurationError(f"NEARCAST_API_HOST, NEARCAST_API_PORT: {error}") from None
    server = uvicorn.Server(
        uvicorn.Config(
            create_app(desk),
            log_config=None,
            access_log=False,
            server_header=False,
            lifespan="off",
            timeout_graceful_shutdown=10,
        )
    )
    # Signals are ours: `serve` would take them over and stop alone.
    task = asyncio.create_task(server._serve([listening]), name="http api")  # noqa: SLF001

    async def shut() -> None:
        server.should_exit = True
        await task

    doors.push_async_callback(shut)
    while not server.started and not task.done():  # noqa: ASYNC110 uvicorn has no event for it
        await asyncio.sleep(0.01)


def open_metrics(host: str, port: int, stack: AsyncExitStack) -> None:
    try:
        server, thread = start_http_server(port, host)
    except OSError as error:
        raise ConfigurationError(f"NEARCAST_METRICS_PORT: {error}") from None
    stack.callback(thread.join)
    stack.callback(server.server_close)
    stack.callback(server.shutdown)
