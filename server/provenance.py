"""What the data in a store was made with: the version of its layout, its number of partitions, its event log.

Each is noted at the first start and compared at every later one, so that a store is not read with other eyes than it
was written with. An older layout that this version can read is noted as the present one: an older nearcast will refuse
the store from then on.
"""

from collections.abc import Mapping

from redis.asyncio import Redis

from nearcast import keys
from nearcast.errors import ConfigurationError
from server.settings import Settings
from server.store import reaching_store, text

#: The layout that this nearcast writes. Raise it when an older nearcast could not read what this one writes.
DATA_VERSION = 2
#: Older layouts that it reads. 1 is of stores from before the version was noted.
READABLE = frozenset({1})


async def check_provenance(redis: Redis, settings: Settings) -> None:
    """Compare what the store remembers with the settings. Raises `ConfigurationError`, `Unavailable`."""
    with reaching_store():
        version, partitions, log = [
            None if value is None else text(value)
            for value in await redis.mget(keys.data_version(), keys.partitions(), keys.log_kind())
        ]
    if version is not None and version not in {str(known) for known in (DATA_VERSION, *READABLE)}:
        readable = ", ".join(str(known) for known in sorted(READABLE))
        raise ConfigurationError(
            f"the data in this store has version {version[:20]}; this nearcast needs {DATA_VERSION} (it also reads "
            f"{readable}). Run the nearcast that wrote it or a newer one, or use an empty store"
        )
    if partitions is not None and partitions != str(settings.partitions):
        raise ConfigurationError(
            f"NEARCAST_PARTITIONS is {settings.partitions}, and the customers in this store are spread over "
            f"{partitions[:20]} partitions: set it back (and Kafka's topics, too), or use an empty store"
        )
    if log is not None and log != _log_kind(settings):
        raise ConfigurationError(
            f"NEARCAST_KAFKA: this store has worked with {log} as its event log; its offsets mean nothing on "
            f"{_log_kind(settings)}"
        )


async def note_provenance(redis: Redis, settings: Settings) -> None:
    """Remember what this store's data is made with, once the log is known to agree. Raises like `check_provenance`."""
    first: Mapping[str, str | int] = {
        keys.partitions(): settings.partitions,
        keys.log_kind(): _log_kind(settings),
    }
    with reaching_store():
        for name, value in first.items():
            await redis.set(name, value, nx=True)
    # Another process may have been quicker, with other settings.
    await check_provenance(redis, settings)
    with reaching_store():
        await redis.set(keys.data_version(), DATA_VERSION)


def _log_kind(settings: Settings) -> str:
    return "streams" if settings.kafka is None else "kafka"
