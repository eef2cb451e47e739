"""Gateways on free ports, and tokens for their clients."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest
from redis.asyncio import Redis

from channels.gateway.server import Gateway
from channels.gateway.settings import GatewaySettings
from channels.gateway.streams import ChannelStreams
from channels.gateway.tokens import Tokens
from nearcast.clock import SystemClock
from tests.channels.gateway.support import SECRET, ScriptedBackend

QUICK = {"tick_s": 0.02, "close_timeout_s": 0.3, "drain_s": 1.0}

StartGateway = Callable[..., Awaitable[Gateway]]


@pytest.fixture
def tokens() -> Tokens:
    return Tokens(SECRET, SystemClock())


@pytest.fixture
def backend() -> ScriptedBackend:
    return ScriptedBackend()


@pytest.fixture
async def start_gateway(redis: Redis, tokens: Tokens, backend: ScriptedBackend) -> AsyncIterator[StartGateway]:
    """Starts gateways: `await start_gateway("node-1", ping_interval_s=0.1)`. They stop with the test."""
    async with AsyncExitStack() as stack:

        async def start(node: str = "node-1", **settings: Any) -> Gateway:
            streams = ChannelStreams(redis, node, SystemClock())
            gateway = Gateway(GatewaySettings(**{**QUICK, **settings}), tokens, streams, backend, SystemClock())
            await gateway.start()
            stack.push_async_callback(gateway.stop)
            return gateway

        yield start


@pytest.fixture
async def gateway(start_gateway: StartGateway) -> Gateway:
    return await start_gateway()


@pytest.fixture
def streams(redis: Redis) -> ChannelStreams:
    """A publisher in some other process."""
    return ChannelStreams(redis, "elsewhere", SystemClock())
