"""What is set reaches the log that is made from it."""

from server.core import log_of
from server.log.kafka import KafkaLog
from server.log.streams import StreamsConsumer, StreamsLog
from server.settings import load


def test_kafka_gets_its_settings() -> None:
    """The instance's name, and whether topics are created."""
    log = log_of(load(kafka="127.0.0.1:1", instance_id="engine-3", kafka_create_topics=False), "")
    assert isinstance(log, KafkaLog)
    assert (log.options.instance_id, log.options.create_topics) == ("engine-3", False)
    log = log_of(load(kafka="127.0.0.1:1"), "")
    assert isinstance(log, KafkaLog)
    assert (log.options.instance_id, log.options.create_topics) == ("", True)


async def test_streams_get_the_name_of_the_instance() -> None:
    """It is the member's name in every group."""
    log = log_of(load(instance_id="engine-3"), "redis://127.0.0.1:1")
    assert isinstance(log, StreamsLog)
    consumer = log.consumer("group", ["topic"])
    assert isinstance(consumer, StreamsConsumer)
    assert consumer._leases._member == "engine-3"
    await consumer.stop()
    await log.stop()
