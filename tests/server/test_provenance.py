"""What a store remembers of how its data was made, and who is refused because of it."""

from typing import Any

import pytest
from redis.asyncio import Redis

from nearcast import keys
from nearcast.errors import ConfigurationError
from server.provenance import DATA_VERSION, READABLE, check_provenance, note_provenance
from server.settings import Settings
from tests.server.test_dead_letters import SECRET


def settings(**fields: Any) -> Settings:
    return Settings(**{"partitions": 4, "token_secret": SECRET} | fields)


async def start(redis: Redis, **fields: Any) -> None:
    """What a process does with a store: look before it opens the log, note after."""
    await check_provenance(redis, settings(**fields))
    await note_provenance(redis, settings(**fields))


async def test_a_new_store_is_noted(redis: Redis) -> None:
    """Version, partitions and log are there after the first start; the same settings start again."""
    for _ in range(2):
        await start(redis)
    noted = await redis.mget(keys.data_version(), keys.partitions(), keys.log_kind())
    assert noted == [str(DATA_VERSION).encode(), b"4", b"streams"]


async def test_looking_notes_nothing(redis: Redis) -> None:
    """A start that fails before the log has agreed leaves no trace: the setting may have been the mistake."""
    await check_provenance(redis, settings(partitions=3, kafka="nowhere:1"))
    assert await redis.dbsize() == 0


@pytest.mark.parametrize(
    ("noted", "fields", "said"),
    [
        ({keys.data_version(): "99"}, {}, f"has version 99; this nearcast needs {DATA_VERSION}"),
        ({keys.data_version(): "0"}, {}, "has version 0"),
        ({keys.data_version(): "two"}, {}, "has version two"),
        ({keys.data_version(): str(DATA_VERSION), keys.partitions(): "8"}, {}, "NEARCAST_PARTITIONS is 4"),
        ({keys.partitions(): "8"}, {"kafka": "k:1"}, "spread over 8 partitions"),
        ({keys.log_kind(): "kafka"}, {}, "NEARCAST_KAFKA: this store has worked with kafka"),
        ({keys.log_kind(): "streams"}, {"kafka": "k:1"}, "NEARCAST_KAFKA: this store has worked with streams"),
    ],
)
async def test_another_store(redis: Redis, noted: dict[str, str], fields: dict[str, Any], said: str) -> None:
    """What was found, what is wanted, and what to do; nothing is changed."""
    await redis.mset(noted)
    with pytest.raises(ConfigurationError, match=said):
        await start(redis, **fields)
    assert await redis.mget(list(noted)) == [value.encode() for value in noted.values()]
    assert await redis.dbsize() == len(noted)


@pytest.mark.parametrize("version", [None, *READABLE])
async def test_an_older_store_is_taken_over(redis: Redis, version: int | None) -> None:
    """From then on it is a store of this version. One from before versions were noted only has its log's kind."""
    await redis.set(keys.log_kind(), "streams")
    if version is not None:
        await redis.set(keys.data_version(), version)
    await start(redis)
    assert await redis.get(keys.data_version()) == str(DATA_VERSION).encode()


async def test_another_process_was_quicker(redis: Redis) -> None:
    """Two first starts with different settings: the second to note is refused."""
    await check_provenance(redis, settings(partitions=3))
    await start(redis)
    with pytest.raises(ConfigurationError, match="NEARCAST_PARTITIONS is 3"):
        await note_provenance(redis, settings(partitions=3))
