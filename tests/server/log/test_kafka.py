"""What only the Kafka adapter has: topics of its own making, and records of other producers."""

import pytest
from aiokafka import AIOKafkaProducer

from nearcast.errors import ConfigurationError, Unavailable
from nearcast.topics import CATALOGUE_TOPICS, CUSTOMER_TOPICS
from server.log.base import Entry
from server.log.kafka import KafkaLog, KafkaOptions
from tests.server.log.rigs import member, read, running, seek_all, settle
from tests.services.kafka import create_topics
from tests.services.ports import free_ports

pytestmark = pytest.mark.kafka


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
