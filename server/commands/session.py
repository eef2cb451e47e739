"""What commands on a store share: opening it, with or without a server running, and failing in one line."""

import asyncio
import sys
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import NoReturn

import click
import msgspec
from redis.asyncio import Redis

from nearcast.errors import ConfigurationError, InputError, Unavailable
from server import settings as settings_module
from server.provenance import check_provenance
from server.settings import Settings
from server.store import client_of, reaching_store
from server.valkey import Access, EmbeddedValkey


def run(work: Coroutine[None, None, None]) -> None:
    """Run a command to its end; what keeps it from its job is one line on stderr and exit code 2."""
    try:
        asyncio.run(work)
    except (ConfigurationError, Unavailable, InputError) as error:
        fail(str(error))


def settings_here() -> Settings:
    """The settings in force, or one line on stderr and exit code 2."""
    try:
        return settings_module.load()
    except ConfigurationError as error:
        fail(str(error))


def fail(text: str) -> NoReturn:
    click.echo(f"nearcast: {text}", err=True)
    sys.exit(2)


@asynccontextmanager
async def opened_store() -> AsyncIterator[tuple[Settings, Redis, str]]:
    """The configured store, checked: settings, a client, its URL.

    The private Valkey of a data directory is the running server's, or started for as long as this lasts.
    """
    settings = settings_module.load()
    if settings.redis_url is not None:
        async with _connected(settings, settings.redis_url.get_secret_value()) as redis:
            yield settings, redis, settings.redis_url.get_secret_value()
        return
    folder = settings.data_dir / "valkey"
    if not folder.is_dir():
        raise ConfigurationError(
            f"there is no data in {settings.data_dir}; NEARCAST_DATA_DIR or NEARCAST_REDIS_URL says where it is"
        )
    valkey = EmbeddedValkey(settings.data_dir)
    try:
        await valkey.start()
        url = valkey.url
    except ConfigurationError:
        # A server runs on it: its Valkey is ours, too. If it is something else, the first command says so.
        try:
            url = msgspec.json.decode((folder / "access.json").read_bytes(), type=Access).url
        except (OSError, msgspec.MsgspecError):
            raise Unavailable(f"the Valkey in {settings.data_dir} is not up; try again in a moment") from None
    try:
        async with _connected(settings, url) as redis:
            yield settings, redis, url
    finally:
        await valkey.stop()


@asynccontextmanager
async def _connected(settings: Settings, url: str) -> AsyncIterator[Redis]:
    redis = client_of(url)
    try:
        with reaching_store():
            await redis.ping()
        await check_provenance(redis, settings)
        yield redis
    finally:
        await redis.aclose()
