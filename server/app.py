"""The process: runs its roles, and stops in order.

Every long-running part is a named task in one group; if one of them dies, the process stops loudly instead of limping
on (its work is in the log and the outbox, so a restart continues). SIGTERM and SIGINT drain: first no new work is
taken, then what is under way finishes, then the store is shut down.
"""

import asyncio
import logging
import signal
from collections.abc import Callable
from contextlib import AsyncExitStack
from functools import partial

from nearcast import metrics
from nearcast.errors import NearcastError, Unavailable
from server.core import Core, open_core
from server.roles import (
    Root,
    make_collector,
    make_desk,
    make_dispatcher,
    make_engine,
    open_api,
    open_gateway,
    open_metrics,
)
from server.settings import Settings
from server.valkey import EmbeddedValkey

logger = logging.getLogger("nearcast.server")


async def serve(settings: Settings, ready: Callable[[str], None] = lambda _: None) -> None:
    """Run the configured roles until SIGTERM or SIGINT. `ready` is called with a sentence once everything answers."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with AsyncExitStack() as stack:
        core = await stack.enter_async_context(open_core(settings))
        desk = make_desk(core)
        roots = [Root("world", core.world.run), Root("models", core.models.run), make_collector()]
        if core.valkey is not None:
            roots.append(Root("embedded Valkey", partial(_watch, core.valkey)))
        if "engine" in settings.roles:
            roots += await make_engine(core, stack)
        if "dispatcher" in settings.roles:
            roots += make_dispatcher(core, stack)
        if settings.metrics_port is not None:
            open_metrics(settings.api_host, settings.metrics_port, stack)
        async with asyncio.TaskGroup() as group:
            tasks = {root.name: group.create_task(_rooted(root, stop), name=root.name) for root in roots}
            try:
                async with AsyncExitStack() as doors:
                    if "gateway" in settings.roles:
                        await open_gateway(core, desk, doors)
                    if "api" in settings.roles:
                        await open_api(core, desk, doors)
                    ready(_greeting(core))
                    await stop.wait()
                    logger.info("stopping: no new work")
            finally:
                stop.set()
                for root in roots:
                    await (_cancel(tasks[root.name]) if root.halt is None else root.halt())


async def _rooted(root: Root, stop: asyncio.Event) -> None:
    """A root runs until it is told to end; anything else is the end of the process, with the reason logged."""
    try:
        await root.work()
    except NearcastError as error:
        metrics.TASK_FAILURES.labels(root.name).inc()
        logger.error("%s failed; the process stops: %s", root.name, error)  # noqa: TRY400 its words say it all
        raise
    except Exception:
        metrics.TASK_FAILURES.labels(root.name).inc()
        logger.exception("%s failed; the process stops", root.name)
        raise
    if not stop.is_set():
        raise RuntimeError(f"{root.name} ended by itself")


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
