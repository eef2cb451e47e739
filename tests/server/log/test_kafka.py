"""What only the Kafka adapter has: topics of its own making, and records of other producers."""

import msgspec
import pytest
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from nearcast.errors import ConfigurationError, Unavailable
from nearcast.topics import CATALOGUE_TOPICS, CUSTOMER_TOPICS
from server.core import log_of
from server.log.base import Entry
from server.log.kafka import KafkaLog, KafkaOptions
from server.settings import load
from tests.server.log.rigs import member, read, running, seek_all, settle
from tests.services.kafka import KafkaBroker, Tansu, create_topics
from tests.services.ports import free_ports

pytestmark = pytest.mark.kafka


async def topics_of(bootstrap: str) -> set[str]:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        return {name for name in await admin.list_topics() if not name.startswith("__")}
    finally:
        await admin.close()


async def test_missing_topics_are_created(kafka_options: KafkaOptions) -> None:
    """On an empty cluster every topic of the vocabulary can be appended to; a second start finds them as they are."""
    for _ in range(2):
        async with running(KafkaLog(kafka_options, 4)) as log:
            await log.append([Entry(topic, "key", b"value") for topic in (*CUSTOMER_TOPICS, *CATALOGUE_TOPICS)])


async def test_a_customer_topic_with_other_partitions_is_named(
    kafka_bootstrap: str, kafka_options: KafkaOptions
) -> None:
    """Topics of the retailer's own making must fit the setting; the message says which doesn't."""
    await create_topics(kafka_bootstrap, {"customers.carts": 3})
    log = KafkaLog(kafka_options, 4)
    with pytest.raises(ConfigurationError, match=r"customers\.carts has 3 partitions"):
        await log.start()
    await log.stop()


async def test_every_topic_that_does_not_fit_is_named(kafka_bootstrap: str, kafka_options: KafkaOptions) -> None:
    """One start tells all that is wrong, with the numbers and what to do, and has changed nothing."""
    await create_topics(kafka_bootstrap, {"customers.carts": 3, "customers.actions": 8, "customers.locations": 4})
    log = KafkaLog(kafka_options, 4)
    with pytest.raises(ConfigurationError) as stopped:
        await log.start()
    await log.stop()
    said = str(stopped.value)
    assert "customers.carts has 3 partitions, customers.actions has 8 partitions" in said
    assert "NEARCAST_PARTITIONS is 4" in said
    assert "customers.locations has" not in said
    assert await topics_of(kafka_bootstrap) == {"customers.carts", "customers.actions", "customers.locations"}


async def test_missing_topics_are_named_where_they_may_not_be_created(
    kafka_bootstrap: str, kafka_options: KafkaOptions
) -> None:
    """With creation off, each missing topic is named, beside those that don't fit, and nothing is created."""
    await create_topics(kafka_bootstrap, {"customers.carts": 3, "customers.locations": 4, "stores.fences": 1})
    log = KafkaLog(msgspec.structs.replace(kafka_options, create_topics=False), 4)
    with pytest.raises(ConfigurationError) as stopped:
        await log.start()
    await log.stop()
    wrong, missing = str(stopped.value).splitlines()
    assert "customers.carts has 3 partitions" in wrong
    expected = {*CUSTOMER_TOPICS, *CATALOGUE_TOPICS} - {"customers.carts", "customers.locations", "stores.fences"}
    assert missing.startswith(f"missing topics: {', '.join(sorted(expected))}.")
    assert "4 partitions each" in missing
    assert "NEARCAST_KAFKA_CREATE_TOPICS" in missing
    assert await topics_of(kafka_bootstrap) == {"customers.carts", "customers.locations", "stores.fences"}


async def test_topics_made_by_somebody_else_are_enough(kafka_bootstrap: str, kafka_options: KafkaOptions) -> None:
    """With creation off and all topics there, everything works."""
    await create_topics(kafka_bootstrap, {**dict.fromkeys(CUSTOMER_TOPICS, 4), **dict.fromkeys(CATALOGUE_TOPICS, 1)})
    async with running(KafkaLog(msgspec.structs.replace(kafka_options, create_topics=False), 4)) as log:
        await log.append([Entry(topic, "key", b"value") for topic in (*CUSTOMER_TOPICS, *CATALOGUE_TOPICS)])


async def test_the_topic_for_other_systems(kafka_bootstrap: str, kafka_options: KafkaOptions) -> None:
    """`customers.promotions` is made where it is wanted, with as many partitions as the others; else it isn't there."""
    idempotent = kafka_options.idempotent
    for wanted in (False, True):
        settings = load(kafka=kafka_bootstrap, kafka_idempotent=idempotent, partitions=3, promotions_topic=wanted)
        async with running(log_of(settings, "")):
            assert ("customers.promotions" in await topics_of(kafka_bootstrap)) == wanted
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka_bootstrap)
    await admin.start()
    [told] = await admin.describe_topics(["customers.promotions"])
    await admin.close()
    assert len(told["partitions"]) == 3


async def test_topics_that_kafka_does_not_create_are_named(
    kafka_broker: KafkaBroker | None, kafka_options: KafkaOptions
) -> None:
    """The broker says no (here: it has no nine brokers to replicate to); the message says to what, and why."""
    if isinstance(kafka_broker, Tansu):
        pytest.skip(f"{Tansu.name} stands in for Apache Kafka, and creates topics whatever replication is asked for")
    log = KafkaLog(msgspec.structs.replace(kafka_options, replication=9), 4)
    with pytest.raises(ConfigurationError) as stopped:
        await log.start()
    await log.stop()
    said = str(stopped.value)
    for topic in (*CUSTOMER_TOPICS, *CATALOGUE_TOPICS):
        assert f"{topic} (InvalidReplicationFactorError" in said
    assert "NEARCAST_KAFKA_REPLICATION is 9" in said


async def configured(bootstrap: str, topic: str) -> dict[str, str]:
    """The settings of a topic, as the broker tells them."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        (answer,) = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic)])
    finally:
        await admin.close()
    (_, _, _, _, entries), *_ = answer.resources
    return {name: value for name, value, *_ in entries}


async def test_positions_are_short_lived(
    kafka_broker: KafkaBroker | None,
    kafka_bootstrap: str,
    kafka_options: KafkaOptions,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The broker is told to be rid of a fix within 15 minutes, counting that it looks every five; of nothing else."""
    if isinstance(kafka_broker, Tansu):
        pytest.skip(f"{Tansu.name} stands in for Apache Kafka, and deletes nothing")
    for _ in range(2):
        async with running(KafkaLog(kafka_options, 4)):
            pass
    told = await configured(kafka_bootstrap, "customers.locations")
    assert told["cleanup.policy"] == "delete"
    parts = [int(told[name]) for name in ("retention.ms", "segment.ms", "file.delete.delay.ms")]
    assert min(parts) > 0
    assert sum(parts) + 5 * 60_000 <= 15 * 60_000
    assert int((await configured(kafka_bootstrap, "customers.carts"))["retention.ms"]) > 86_400_000
    assert "keeps positions" not in caplog.text


async def test_a_topic_that_keeps_positions_is_named(
    kafka_broker: KafkaBroker | None,
    kafka_bootstrap: str,
    kafka_options: KafkaOptions,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A topic of somebody else's making that keeps fixes for a week is used, and the start says what is wrong."""
    if isinstance(kafka_broker, Tansu):
        pytest.skip(f"{Tansu.name} stands in for Apache Kafka, and does not tell its topics' settings")
    await create_topics(kafka_bootstrap, {"customers.locations": 4})
    async with running(KafkaLog(kafka_options, 4)):
        pass
    (said,) = [entry.getMessage() for entry in caplog.records if "keeps positions" in entry.getMessage()]
    assert "customers.locations keeps positions for longer than 15 minutes" in said
    assert "retention.ms=604800000" in said
    assert "set cleanup.policy=delete, retention.ms=480000, segment.ms=60000" in said


async def test_marks_of_transactions_are_no_lag(
    kafka_broker: KafkaBroker | None, kafka_bootstrap: str, kafka_options: KafkaOptions
) -> None:
    """A producer with transactions leaves marks that take offsets: what is processed to the end has no lag."""
    if isinstance(kafka_broker, Tansu):
        pytest.skip(f"{Tansu.name} stands in for Apache Kafka, and knows no transactions")
    async with running(KafkaLog(kafka_options, 4)) as log:
        async with AIOKafkaProducer(bootstrap_servers=kafka_bootstrap, transactional_id="test") as producer:
            for aborted in (False, True):
                await producer.begin_transaction()
                for n in range(3):
                    await producer.send_and_wait("customers.carts", str(n).encode(), partition=0)
                await (producer.abort_transaction() if aborted else producer.commit_transaction())
        async with member(log, topics=["customers.carts"]) as consumer:
            await settle(consumer)
            await consumer.seek(0, {})
            records = await read(consumer, 3)
            assert [record.value for record in records] == [b"0", b"1", b"2"]
            assert await consumer.fetch(10, 300) == []
            assert (await consumer.lag())["customers.carts", 0] > 0
            await consumer.progress(0, {"customers.carts": records[1].position})
            assert (await consumer.lag())["customers.carts", 0] > 0
            await consumer.progress(0, {"customers.carts": records[2].position})
            assert (await consumer.lag())["customers.carts", 0] == 0


async def test_records_that_are_gone_are_missed_aloud(
    kafka_broker: KafkaBroker | None,
    kafka_bootstrap: str,
    kafka_options: KafkaOptions,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Expired before they were read, or lost after: an error says where, and how many. What is there is read."""
    if isinstance(kafka_broker, Tansu):
        pytest.skip(f"{Tansu.name} stands in for Apache Kafka, and does not tell where a log ends")
    topic = "customers.carts"
    async with running(KafkaLog(kafka_options, 4)) as log:
        async with AIOKafkaProducer(bootstrap_servers=kafka_bootstrap) as producer:
            for n in range(10):
                await producer.send_and_wait(topic, str(n).encode(), partition=1)
        admin = AIOKafkaAdminClient(bootstrap_servers=kafka_bootstrap)
        await admin.start()
        await admin.delete_records({TopicPartition(topic, 1): RecordsToDelete(7)})
        await admin.close()
        async with member(log, topics=[topic]) as consumer:
            await settle(consumer)
            for position in ("", "6", "9"):
                await consumer.seek(1, {topic: position})
            assert _said(caplog) == []
            await consumer.seek(1, {topic: "3"})
            assert [record.value for record in await read(consumer, 3)] == [b"7", b"8", b"9"]
            await consumer.seek(1, {topic: "99"})
            assert [record.value for record in await read(consumer, 3)] == [b"7", b"8", b"9"]
    gone, lost = _said(caplog)
    assert gone.startswith("customers.carts, partition 1: 3 records are gone before they were read")
    assert lost.startswith("customers.carts, partition 1: the log has lost 90 records that had been read already")


def _said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "nearcast.server.log.kafka"]


async def test_a_catalogue_topic_may_have_any_number_of_partitions(
    kafka_bootstrap: str, kafka_options: KafkaOptions
) -> None:
    """Appending goes to a partition that the topic has."""
    await create_topics(kafka_bootstrap, {"stores.products": 1})
    async with running(KafkaLog(kafka_options, 4)) as log:
        await log.append([Entry("stores.products", f"sku-{n}", b"") for n in range(10)])


async def test_records_of_other_producers_are_read(kafka_bootstrap: str, kafka_options: KafkaOptions) -> None:
    """No key, a key that isn't text, and a tombstone come through; what they mean is for the decoder to say."""
    async with running(KafkaLog(kafka_options, 4)) as log:
        async with AIOKafkaProducer(bootstrap_servers=kafka_bootstrap) as producer:
            await producer.send_and_wait("customers.carts", b"no key", partition=0)
            await producer.send_and_wait("customers.carts", b"odd key", key=b"\xff", partition=0)
            await producer.send_and_wait("customers.carts", None, key=b"k", partition=0)
        async with member(log, topics=["customers.carts"]) as consumer:
            await settle(consumer)
            await seek_all(consumer)
            records = await read(consumer, 3)
    assert [(record.key, record.value) for record in records] == [("", b"no key"), ("\ufffd", b"odd key"), ("k", b"")]


async def test_no_broker_is_unavailable() -> None:
    """Nothing listens: `start` says so instead of hanging, for the log and for a consumer."""
    log = KafkaLog(KafkaOptions(bootstrap=f"127.0.0.1:{free_ports(1)[0]}"), 4)
    with pytest.raises(Unavailable):
        await log.start()
    with pytest.raises(Unavailable):
        await log.consumer("group", ["customers.carts"]).start()
    await log.stop()
