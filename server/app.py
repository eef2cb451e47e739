"""The process: builds what its roles need, runs it, and stops in order.

Every long-running part is a named task in one group; if one of them dies, the process stops loudly instead of limping
on (its work is in the log and the outbox, so a restart continues). SIGTERM and SIGINT drain: first no new work is
taken, then what is under way finishes, then the store is shut down.
"""

import asyncio
import logging
import signal
import socket
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import uvicorn
from prometheus_client import start_http_server
from redis.asyncio import Redis

from channels.contract import Channel
from channels.dispatcher import Dispatcher
from channels.gateway.server import Gateway
from channels.gateway.settings import GatewaySettings
from channels.gateway.streams import ChannelStreams
from channels.gateway.tokens import Tokens
from channels.mail import MailChannel, MailSettings
from channels.push import PushChannel
from channels.sms import SmsChannel, SmsSettings
from models.scorer import Scorer
from nearcast import keys, metrics, topics
from nearcast.clock import Clock, SystemClock
from nearcast.errors import ConfigurationError, Unavailable
from nearcast.fold import FoldRules
from nearcast.messages import Message
from nearcast.world import Cap
from offers.loading import load_world
from offers.policy import Policy, QuietHours
from server.api.app import create_app
from server.api.keyring import KeyRing
from server.api.links import Link, LinkSigner
from server.backlog import watch_backlog
from server.catalogue_feed import CatalogueFeed
from server.consents import OptOuts
from server.coupons import CouponBook
from server.credentials import Secrets, secrets_for
from server.deliveries import DeliveryDesk
from server.desk import Desk
from server.devices import DeviceBackend
from server.engine import Engine
from server.intake import Intake
from server.log.base import EventLog
from server.log.kafka import KafkaLog, KafkaOptions
from server.log.leases import forget_predecessors
from server.log.streams import StreamsLog
from server.outbox import ValkeyOutbox
from server.settings import Settings, parse_quiet_hours
from server.state import StateStore
from server.store import client_of, reaching_store, text
from server.timers import TimerPump
from server.valkey import EmbeddedValkey
from server.world import WorldStore

logger = logging.getLogger("nearcast.server")

ENGINE_GROUP = "nearcast.engine"
CATALOGUE_GROUP = "nearcast.catalogue"
_CALLBACK_VALID_MS = 3 * 86_400_000


@dataclass(frozen=True)
class Core:
    """What every role shares."""

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
    intake: Intake
    opt_outs: OptOuts
    streams: ChannelStreams
    links: LinkSigner
    policy: Policy
    node: str

    @property
    def public_url(self) -> str:
        return self.settings.public_url.rstrip("/") or f"http://{self.settings.api_host}:{self.settings.api_port}"


@dataclass(frozen=True)
class Root:
    """A long-running part. `halt` asks it to end in order; without it, it is cancelled."""

    name: str
    work: Coroutine[None, None, None]
    halt: Callable[[], Awaitable[None]] | None = None


async def serve(settings: Settings, ready: Callable[[str], None] = lambda _: None) -> None:
    """Run the configured roles until SIGTERM or SIGINT. `ready` is called with a sentence once everything answers."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with AsyncExitStack() as stack:
        core = await stack.enter_async_context(open_core(settings))
        desk = _desk(core)
        roots = [Root("world", core.world.run())]
        if core.valkey is not None:
            roots.append(Root("embedded Valkey", _watch(core.valkey)))
        if "engine" in settings.roles:
            roots += await _engine(core, stack)
        if "dispatcher" in settings.roles:
            roots.append(_dispatcher(core, stack))
        if settings.metrics_port is not None:
            _serve_metrics(settings.api_host, settings.metrics_port, stack)
        async with asyncio.TaskGroup() as group:
            tasks = {root.name: group.create_task(_rooted(root, stop), name=root.name) for root in roots}
            try:
                async with AsyncExitStack() as doors:
                    if "gateway" in settings.roles:
                        await _open_gateway(core, desk, doors)
                    if "api" in settings.roles:
                        await _open_api(core, desk, doors)
                    ready(_greeting(core))
                    await stop.wait()
                    logger.info("stopping: no new work")
            finally:
                stop.set()
                for root in roots:
                    await (_cancel(tasks[root.name]) if root.halt is None else root.halt())


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
        committing = client_of(redis_url)
        stack.push_async_callback(committing.aclose)
        await _settle_on_log(redis, settings)
        log = _log(settings, redis_url)
        await log.start()
        stack.push_async_callback(log.stop)
        # The owner of a data directory is alone with its store, so after a crash it may take up its old name, and with
        # it what it had begun. Processes that share a store need names of their own (in containers all are pid 1).
        node = f"{socket.gethostname()}-{uuid.uuid4().hex[:12]}" if settings.redis_url else "embedded"
        world = WorldStore(redis)
        await world.refresh()
        for file in settings.world_files:
            await world.put(load_world(_read(file), str(file)))
        quiet = parse_quiet_hours(settings.quiet_hours)
        yield Core(
            settings=settings,
            secrets=secrets,
            clock=clock,
            redis_url=redis_url,
            valkey=valkey,
            redis=redis,
            log=log,
            # On connections of its own, so that a crowd of requests can't keep the engine from committing.
            state=StateStore(committing, settings.partitions),
            world=world,
            intake=Intake(log, clock),
            opt_outs=OptOuts(redis, settings.partitions),
            streams=ChannelStreams(redis, node, clock),
            links=LinkSigner(secrets.link.encode()),
            policy=Policy(
                caps=(Cap(count=settings.offers_per_day, period_s=86_400),),
                quiet_hours=QuietHours(starts=quiet[0], ends=quiet[1]) if quiet else None,
            ),
            node=node,
        )


async def _settle_on_log(redis: Redis, settings: Settings) -> None:
    """Offsets in the store mean positions in one kind of log; with another one they would mean nothing."""
    kind = "streams" if settings.kafka is None else "kafka"
    with reaching_store():
        await redis.set(keys.log_kind(), kind, nx=True)
        settled = text(await redis.get(keys.log_kind()) or kind)
    if settled != kind:
        raise ConfigurationError(
            f"NEARCAST_KAFKA: this store has worked with {settled} as its event log; its offsets mean nothing on {kind}"
        )


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"NEARCAST_WORLD_FILES: {file} can't be read: {error}") from None


def _log(settings: Settings, redis_url: str) -> EventLog:
    if settings.kafka is None:
        return StreamsLog(redis_url, settings.partitions)
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
    )
    return KafkaLog(options, settings.partitions)


def _desk(core: Core) -> Desk:
    settings, secrets = core.settings, core.secrets
    token = settings.sms_auth_token
    return Desk(
        redis=core.redis,
        state=core.state,
        world=core.world,
        intake=core.intake,
        log=core.log,
        coupons=CouponBook(core.redis, secrets.coupon.encode(), core.clock),
        opt_outs=core.opt_outs,
        streams=core.streams,
        tokens=Tokens(secrets.token.encode(), core.clock),
        keyring=KeyRing(secrets.api_keys.items()),
        links=core.links,
        clock=core.clock,
        public_url=core.public_url,
        sms_auth_token=token.get_secret_value() if token else "",
        demo=settings.demo,
        web_root=Path(str(resources.files("clients").joinpath("web"))),
    )


async def _engine(core: Core, stack: AsyncExitStack) -> list[Root]:
    settings = core.settings
    model = settings.model_dir or Path(str(resources.files("models").joinpath("artifacts", "redeem")))
    consumer = core.log.consumer(ENGINE_GROUP, topics.CUSTOMER_TOPICS)
    await consumer.start()
    stack.push_async_callback(consumer.stop)
    feed_consumer = core.log.consumer(CATALOGUE_GROUP, topics.CATALOGUE_TOPICS)
    await feed_consumer.start()
    stack.push_async_callback(feed_consumer.stop)
    engine = Engine(
        consumer=consumer,
        state=core.state,
        world=core.world,
        scorer=Scorer.load(model),
        rules=FoldRules(cart_abandoned_after_ms=round(settings.cart_abandoned_after_s * 1000)),
        policy=core.policy,
        clock=core.clock,
        batch_events=settings.batch_events,
        cached_customers=settings.cached_customers,
    )
    timers = TimerPump(core.state, core.intake, lambda: engine.partitions, core.clock)
    feed = CatalogueFeed(feed_consumer, core.world, core.redis)
    return [
        Root("engine", engine.run()),
        Root("timers", timers.run()),
        Root("catalogue feed", feed.run()),
        Root("backlog", watch_backlog(consumer, core.redis, lambda: engine.partitions)),
    ]


def _dispatcher(core: Core, stack: AsyncExitStack) -> Root:
    desk = DeliveryDesk(
        redis=core.redis,
        state=core.state,
        world=core.world,
        opt_outs=core.opt_outs,
        log=core.log,
        intake=core.intake,
        links=core.links,
        policy=core.policy,
        public_url=core.public_url,
        clock=core.clock,
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
    return Root("dispatcher", dispatcher.run(), dispatcher.stop)


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


async def _open_gateway(core: Core, desk: Desk, doors: AsyncExitStack) -> None:
    settings = core.settings
    gateway = Gateway(
        GatewaySettings(
            host=settings.gateway_host, port=settings.gateway_port, origins=tuple(settings.allowed_origins)
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


async def _open_api(core: Core, desk: Desk, doors: AsyncExitStack) -> None:
    settings = core.settings
    try:
        listening = socket.create_server((settings.api_host, settings.api_port), backlog=2048)
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


async def _rooted(root: Root, stop: asyncio.Event) -> None:
    """A root runs until it is told to end; anything else is the end of the process, with the reason logged."""
    try:
        await root.work
    except Exception:
        metrics.TASK_FAILURES.labels(root.name).inc()
        logger.exception("%s failed; the process stops", root.name)
        raise
    if not stop.is_set():
        raise RuntimeError(f"{root.name} ended by itself")


def _serve_metrics(host: str, port: int, stack: AsyncExitStack) -> None:
    try:
        server, thread = start_http_server(port, host)
    except OSError as error:
        raise ConfigurationError(f"NEARCAST_METRICS_PORT: {error}") from None
    stack.callback(thread.join)
    stack.callback(server.server_close)
    stack.callback(server.shutdown)


async def _watch(valkey: EmbeddedValkey) -> None:
    code = await valkey.wait()
    raise Unavailable(f"the embedded Valkey ended (exit code {code}); a restart of nearcast starts it again")


async def _cancel(task: asyncio.Task[None]) -> None:
    """Cancel until it is over: redis-py may swallow a cancellation that meets a reply."""
    while not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=0.5)


def _greeting(core: Core) -> str:
    settings = core.settings
    parts = [f"roles {', '.join(settings.roles)}"]
    if "api" in settings.roles:
        parts.append(f"HTTP on http://{settings.api_host}:{settings.api_port}")
    if "gateway" in settings.roles:
        parts.append(f"WebSocket on ws://{settings.gateway_host}:{settings.gateway_port}/connection/websocket")
    parts.append("event log on Kafka" if settings.kafka else "event log on Valkey Streams")
    parts.append("an outside store" if settings.redis_url else f"a private Valkey in {settings.data_dir}")
    return "nearcast is ready: " + "; ".join(parts)
