"""The gateway: memory per connection, deliveries per second of processor time, delay, storms, and slow clients.

    python -m bench.gateway [--connections 15000] [--storm 10000] [--rate 2000] [--seconds 10]

The server is `nearcast serve` with the gateway's role alone; clients and publisher are processes of their own, and what
a server used is what the kernel says. All clients have a token, one personal channel with history, and recovery.

In the first part nearcast, Centrifugo (where `centrifugo` is on the PATH, on the same Valkey, or with `--memory-engine`
in its own memory) and the floor (an asyncio server that only does `transport.write`) stand side by side with the same
clients, and take turns:

* memory: resident memory with `--connections` connected and subscribed, less that before the first one.
* unicast: pushes to one client each, as fast as they can be published. Counted is the processor time of the gateway and
  of the process that publishes with nearcast's code; for Centrifugo its own, its HTTP API does the publishing. The
  store's is stated apart. What the same connections cost while nothing is pushed (pings, checks) is measured before
  and taken off.
* broadcast: pushes to `--listeners` clients of one channel at once.

In the second part nearcast alone has `--storm` clients:

* delay from the time a push was due until the client's process has read it, at `--rate` pushes a second.
* storm: all clients are cut off at once while `--storm-rate` pushes a second go on. They come back like the JavaScript
  SDK, after 0.5 to 1 s at first. Each client's offsets must be without a gap. Before, the same with a tenth of them:
  the store's work for a client must be the same. Its calls for publications and checks are measured before that, and
  taken off.
* slow clients: 1 % more clients get 16 KiB five times a second. The 99th percentile of the others when these never
  read, read 1 byte a second or have vanished without a word (a third each), against that when they read; in turns.

The last line is one JSON object.
"""

import argparse
import asyncio
import contextlib
import json
import resource
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from bench.centrifugo import API_KEY, Centrifugo
from bench.gateway_floor import Listening, Write, Wrote
from bench.gateway_load import (
    MANNERS,
    Back,
    Connect,
    Count,
    Counts,
    Cut,
    Drop,
    Mark,
    Misbehave,
    Save,
    raise_limit,
)
from bench.gateway_publisher import Publish, Published
from bench.processes import Process, environment, usage
from server.store import client_of
from server.valkey import EmbeddedValkey, die_with_parent
from tests.services.ports import free_ports

Row = dict[str, Any]

_SECRET = "a-secret-of-the-benchmark-with-32-bytes"
_BROADCAST = "store:bench"
_BULK, _BULK_SIZE, _BULK_RATE = "store:bulk", 16_384, 5.0
_READY_WITHIN_S = 30.0
#: So long without a publication, and what is missing is lost.
_SILENCE_S = 15.0
#: The start of a steady load is not steady.
_UNSTEADY_S = 1.0
_OTHER_DESCRIPTORS = 200
#: Load processes never are so many.
_SUBNETS_OF_A_GROUP = 60
_UNICAST, _LISTENERS, _ODD = "unicast", "listeners", "odd"
#: Commands of the store that read; those of scripts are counted too.
_READS = ("xrange", "xrevrange", "xread", "hmget", "hget", "hgetall", "get", "exists", "zcount", "zscore", "zrange")


class Store:
    """The Valkey that all of them use."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._client = client_of(url)

    async def cpu_s(self) -> float:
        found = await self._client.info("cpu")
        return float(found["used_cpu_user"]) + float(found["used_cpu_sys"])

    async def calls(self) -> np.ndarray[Any, Any]:
        """Commands so far: all, and those that read."""
        found = await self._client.info("commandstats")
        calls = {name.removeprefix("cmdstat_"): int(each["calls"]) for name, each in found.items()}
        return np.array([sum(calls.values()), sum(calls.get(name, 0) for name in _READS)], dtype=np.float64)

    async def close(self) -> None:
        await self._client.aclose()


class Nearcast:
    """`nearcast serve` with the gateway's role, in a process of its own."""

    def __init__(self, folder: Path, store: Store) -> None:
        self._folder = folder
        self.port, self._metrics_port = free_ports(2)
        self._settings = {
            "NEARCAST_REDIS_URL": store.url,
            "NEARCAST_ROLES": '["gateway"]',
            "NEARCAST_GATEWAY_PORT": str(self.port),
            "NEARCAST_METRICS_PORT": str(self._metrics_port),
            "NEARCAST_API_KEYS": '{"admin":"benchmark"}',
            "NEARCAST_TOKEN_SECRET": _SECRET,
            "NEARCAST_COUPON_SECRET": _SECRET,
            "NEARCAST_LINK_SECRET": _SECRET,
            "NEARCAST_LOG_LEVEL": "warning",
        }
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    async def start(self) -> None:
        log = self._folder / "nearcast.log"
        with log.open("ab") as output:
            self._process = await asyncio.create_subprocess_exec(
                *(Path(sys.executable).with_name("nearcast"), "serve"),
                env=environment(**self._settings),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                preexec_fn=die_with_parent,
            )
        deadline = time.monotonic() + _READY_WITHIN_S
        async with httpx.AsyncClient(trust_env=False) as http:
            while True:
                try:
                    if (await http.get(f"http://127.0.0.1:{self.port}/health")).status_code == 200:
                        return
                except httpx.HTTPError:
                    if self._process.returncode is not None or time.monotonic() > deadline:
                        await self.stop()
                        said = log.read_text(errors="replace")[-4000:]
                        raise RuntimeError(f"nearcast does not answer:\n{said}") from None
                await asyncio.sleep(0.05)

    async def disconnects(self) -> dict[str, float]:
        """Connections that it closed, by code."""
        async with httpx.AsyncClient(trust_env=False) as http:
            text = (await http.get(f"http://127.0.0.1:{self._metrics_port}/metrics")).text
        return {
            sample.labels["code"]: sample.value
            for family in text_string_to_metric_families(text)
            if family.name == "nearcast_disconnects"
            for sample in family.samples
            if sample.name.endswith("_total")
        }

    async def stop(self) -> None:
        if self._process is not None and self._process.returncode is None:
            # It has told nobody anything that matters: no need for an orderly end.
            self._process.kill()
            await self._process.wait()


class Crowd:
    """The clients of one server, shared out over processes."""

    _processes_so_far = 0

    def __init__(self, processes: Sequence[Process], folder: Path, subnets: Sequence[int]) -> None:
        self._processes = processes
        self._folder = folder
        self._subnets = subnets
        self.sizes: dict[str, int] = {}

    @classmethod
    async def start(cls, folder: Path, processes: int, stack: AsyncExitStack) -> "Crowd":
        started = []
        for _ in range(processes):
            started.append(await Process.start(folder / "load.log", "bench.gateway_load"))
            stack.push_async_callback(started[-1].stop)
        first = cls._processes_so_far + 1
        cls._processes_so_far += processes
        return cls(started, folder, range(first, first + processes))

    async def connect(
        self,
        group: str,
        port: int,
        first: int,
        count: int,
        channels: Sequence[str] = (),
        *,
        narrow: bool = False,
        secret: str = _SECRET,
    ) -> tuple[float, int]:
        """Seconds until all were connected, and attempts in all."""
        self.sizes[group] = count
        # Groups are on addresses of their own.
        offset = _SUBNETS_OF_A_GROUP * list(self.sizes).index(group)
        orders = [
            Connect(group, port, start, size, secret, list(channels), subnet + offset, narrow)
            for subnet, (start, size) in zip(self._subnets, self._shares(first, count), strict=True)
        ]
        backs = await asyncio.gather(
            *(process.ask(order, Back) for process, order in zip(self._processes, orders, strict=True))
        )
        return max(back.seconds for back in backs), sum(back.attempts for back in backs)

    async def cut(self, group: str, count: int) -> tuple[float, int]:
        """Seconds until the last was back, and attempts in all."""
        orders = [Cut(group, size) for _, size in self._shares(0, count)]
        backs = await asyncio.gather(
            *(process.ask(order, Back) for process, order in zip(self._processes, orders, strict=True))
        )
        return max(back.seconds for back in backs), sum(back.attempts for back in backs)

    async def tell(self, order: Misbehave | Drop | Count | Mark) -> Counts:
        found = await asyncio.gather(*(process.ask(order, Counts) for process in self._processes))
        return Counts(
            connected=sum(each.connected for each in found),
            received=sum(each.received for each in found),
            gaps=sum(each.gaps for each in found),
            unrecovered=sum(each.unrecovered for each in found),
            lost=sum(each.lost for each in found),
            frame_bytes=max(each.frame_bytes for each in found),
        )

    async def until(self, group: str, received: int) -> Counts:
        """Wait until the group has received so many publications in all. Raises `RuntimeError` when they don't come."""
        seen, seen_at_s = -1, time.monotonic()
        while True:
            counts = await self.tell(Count(group))
            if counts.received >= received:
                return counts
            if counts.received != seen:
                seen, seen_at_s = counts.received, time.monotonic()
            elif time.monotonic() > seen_at_s + _SILENCE_S:
                raise RuntimeError(f"of {received} publications {counts.received} arrived: {counts}")
            await asyncio.sleep(0.05)

    async def seen(self, group: str) -> dict[str, np.ndarray[Any, Any]]:
        """What the processes noted since `Mark`, see `gateway_load.Group.save`."""
        columns = []
        for number, process in enumerate(self._processes):
            file = self._folder / f"times-{number}.npz"
            await process.ask(Save(group, str(file)), Counts)
            with np.load(file) as saved:
                columns.append(dict(saved))
        return {name: np.concatenate([each[name] for each in columns]) for name in columns[0]}

    async def delays_ms(self, group: str) -> np.ndarray[Any, Any]:
        """Of each publication since `Mark` that was due `_UNSTEADY_S` or more after the first."""
        seen = await self.seen(group)
        steady = seen["at_ns"] >= seen["at_ns"].min() + _UNSTEADY_S * 1e9
        return np.asarray((seen["seen_ns"] - seen["at_ns"])[steady] / 1e6)

    def _shares(self, first: int, count: int) -> list[tuple[int, int]]:
        each, more = divmod(count, len(self._processes))
        sizes = [each + (number < more) for number in range(len(self._processes))]
        return [(first + sum(sizes[:number]), size) for number, size in enumerate(sizes)]


class Cost(NamedTuple):
    """Processor seconds of the server, of the process that publishes, and of the store."""

    server: float
    publisher: float
    store: float

    def minus(self, other: "Cost", times: float = 1.0) -> "Cost":
        return Cost(*(max(0.0, mine - times * its) for mine, its in zip(self, other, strict=True)))


def cpu_s(pid: int) -> float:
    """Processor time of the threads that a process has now, to the nanosecond (Linux); `usage` knows hundredths."""
    spent_ns = 0
    for file in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            spent_ns += int(file.read_text().split()[0])
    return spent_ns / 1e9


class Contender:
    """A server with its crowd and publisher, and what its rounds cost."""

    def __init__(
        self, name: str, server: Nearcast | Centrifugo, crowd: Crowd, publisher: Process, store: Store
    ) -> None:
        self.name = name
        self.server = server
        self.crowd = crowd
        self.publisher = publisher
        self._store = store
        self.idle = Cost(0.0, 0.0, 0.0)
        self.row: Row = {}
        self.unicast_us: list[Cost] = []
        self.broadcast_us: list[Cost] = []

    async def memory(self, connections: int) -> None:
        before = usage(self.server.pid).rss_bytes
        seconds, attempts = await self.crowd.connect(_UNICAST, self.server.port, 0, connections)
        await asyncio.sleep(2.0)
        after = usage(self.server.pid).rss_bytes
        self.row |= {"connect_s": round(seconds, 2), "connect_attempts": attempts}
        self.row["kib_per_connection"] = round((after - before) / 1024 / connections, 2)
        self.row["rss_mib_before"] = round(before / 2**20, 1)

    async def used(self) -> Cost:
        # What publishes to Centrifugo is a client of its HTTP API, and none of its own.
        publishing = cpu_s(self.publisher.pid) if isinstance(self.server, Nearcast) else 0.0
        return Cost(cpu_s(self.server.pid), publishing, await self._store.cpu_s())

    async def publish(self, group: str, order: Publish, each: int) -> Cost:
        """Until each push has reached `each` clients of the group; microseconds for one of them."""
        received = (await self.crowd.tell(Count(group))).received
        started, before = time.monotonic(), await self.used()
        await self.publisher.ask(order, Published)
        await self.crowd.until(group, received + order.pushes * each)
        spent = (await self.used()).minus(before).minus(self.idle, time.monotonic() - started)
        return Cost(*(seconds / (order.pushes * each) * 1e6 for seconds in spent))


async def capacity(arguments: argparse.Namespace, folder: Path, program: Path | None, stack: AsyncExitStack) -> Row:
    """Memory, unicast and broadcast, of all contenders in turns."""
    store = await new_store(folder / "capacity", stack)
    contenders = [await nearcast(arguments, folder, store, arguments.connections + arguments.listeners, stack)]
    if program is not None:
        redis_url = None if arguments.memory_engine else store.url
        peer = Centrifugo(program, folder, _SECRET, redis_url)
        await peer.start()
        stack.push_async_callback(peer.stop)
        publisher = await Process.start(
            folder / "publisher.log", "bench.gateway_publisher", "--centrifugo", peer.url, "--key", API_KEY
        )
        stack.push_async_callback(publisher.stop)
        crowd = await Crowd.start(folder, _processes(arguments, arguments.connections + arguments.listeners), stack)
        contenders.append(Contender("centrifugo", peer, crowd, publisher, store))
    for contender in contenders:
        await contender.memory(arguments.connections)
        await contender.crowd.connect(
            _LISTENERS, contender.server.port, arguments.connections, arguments.listeners, [_BROADCAST]
        )
        show(contender.name, contender.row)
    floor = await Process.start(folder / "floor.log", "bench.gateway_floor")
    stack.push_async_callback(floor.stop)
    port = (await floor.answer(Listening)).port
    below = await Crowd.start(folder, _processes(arguments, arguments.listeners), stack)
    await below.connect(_LISTENERS, port, 0, arguments.listeners)

    await idle(contenders, arguments.idle_seconds)
    floor_us = []
    unicast = Publish(arguments.pushes, first=0, count=arguments.connections)
    broadcast = Publish(arguments.broadcasts, channel=_BROADCAST, at_once=1)
    for turn in range(arguments.rounds):
        for contender in contenders[turn % len(contenders) :] + contenders[: turn % len(contenders)]:
            contender.unicast_us.append(await contender.publish(_UNICAST, unicast, 1))
            contender.broadcast_us.append(await contender.publish(_LISTENERS, broadcast, arguments.listeners))
        received = (await below.tell(Count(_LISTENERS))).received
        wrote = await floor.ask(Write(_BROADCAST, broadcast.size, arguments.broadcasts), Wrote)
        await below.until(_LISTENERS, received + wrote.frames)
        floor_us.append(wrote.cpu_s / wrote.frames * 1e6)
    return await compared(contenders, floor_us, below)


async def compared(contenders: Sequence[Contender], floor_us: Sequence[float], below: Crowd) -> Row:
    """The contenders' figures and the ratios between them: medians over the rounds, ratios round by round."""
    for contender in contenders:
        counts = [await contender.crowd.tell(Count(group)) for group in (_UNICAST, _LISTENERS)]
        contender.row |= {
            "gaps": sum(each.gaps for each in counts),
            "lost_connections": sum(each.lost for each in counts),
            "frame_bytes": counts[-1].frame_bytes,
            "idle_cpu_share": round(contender.idle.server, 4),
            **_costs("unicast", contender.unicast_us),
            **_costs("broadcast", contender.broadcast_us),
        }
        show(contender.name, contender.row)
    ours = contenders[0]
    row: Row = {name: ours.row[name] for name in ("kib_per_connection", "unicast_per_cpu_s", "broadcast_per_cpu_s")}
    row["floor_per_cpu_s"] = round(1e6 / statistics.median(floor_us))
    row["floor_ratio"] = _ratio(floor_us, [_own(cost) for cost in ours.broadcast_us])
    row["floor_frame_bytes"] = (await below.tell(Count(_LISTENERS))).frame_bytes
    for name in ("memory", "unicast", "broadcast"):
        row[f"vs_centrifugo_{name}"] = None
    for peer in contenders[1:]:
        row["vs_centrifugo_memory"] = round(ours.row["kib_per_connection"] / peer.row["kib_per_connection"], 3)
        row["vs_centrifugo_unicast"] = _ratio(map(_own, peer.unicast_us), map(_own, ours.unicast_us))
        row["vs_centrifugo_broadcast"] = _ratio(map(_own, peer.broadcast_us), map(_own, ours.broadcast_us))
        row["vs_centrifugo_unicast_with_store"] = _ratio(map(sum, peer.unicast_us), map(sum, ours.unicast_us))
    return row | {contender.name: contender.row for contender in contenders}


def _own(cost: Cost) -> float:
    """What a push costs the code that is compared; the store is not."""
    return cost.server + cost.publisher


def _ratio(theirs: Iterable[float], ours: Iterable[float]) -> float:
    ratios = [their / max(our, 1e-9) for their, our in zip(theirs, ours, strict=True)]
    return round(statistics.median(ratios), 3)


def _costs(name: str, costs: Sequence[Cost]) -> Row:
    per_us = statistics.median(map(_own, costs))
    return {f"{name}_per_cpu_s": round(1e6 / max(per_us, 1e-9))} | {
        f"{name}_{part}_us": round(statistics.median(getattr(cost, part) for cost in costs), 2) for part in Cost._fields
    }


async def idle(contenders: Sequence[Contender], seconds: float) -> None:
    """What everything costs a second while nothing is pushed."""
    before = [await contender.used() for contender in contenders]
    started = time.monotonic()
    await asyncio.sleep(seconds)
    for contender, then in zip(contenders, before, strict=True):
        spent = (await contender.used()).minus(then)
        contender.idle = Cost(*(part / (time.monotonic() - started) for part in spent))


async def alone(arguments: argparse.Namespace, folder: Path, stack: AsyncExitStack) -> Row:
    """Delay, storms and slow clients, of nearcast."""
    store = await new_store(folder / "alone", stack)
    here = await nearcast(arguments, folder, store, arguments.storm, stack)
    await here.crowd.connect(_UNICAST, here.server.port, 0, arguments.storm)
    # Of the store: calls a second by themselves, then for each push.
    before, started = await store.calls(), time.monotonic()
    await asyncio.sleep(arguments.idle_seconds)
    by_second = (await store.calls() - before) / (time.monotonic() - started)

    before, started = await store.calls(), time.monotonic()
    pushes = round(arguments.rate * arguments.seconds)
    delays, published = await delay(here, Publish(pushes, first=0, count=arguments.storm, rate=arguments.rate))
    by_push = (await store.calls() - before - by_second * (time.monotonic() - started)) / pushes
    row: Row = {
        "publish_to_socket_p50_ms": round(float(np.percentile(delays, 50)), 2),
        "publish_to_socket_p99_ms": round(float(np.percentile(delays, 99)), 2),
        "pushes_per_s": round(pushes / published.seconds),
        "kept_up": published.seconds < arguments.seconds + 1,
    }
    show("delay", row)
    small = await storm(arguments, here, store, arguments.storm // 10, by_second, by_push)
    show("storm", small)
    large = await storm(arguments, here, store, arguments.storm, by_second, by_push)
    show("storm", large)
    row |= {
        "reconnect_storm_s": large["seconds"],
        "storm_gaps": small["gaps"] + large["gaps"],
        "storm_unrecovered": small["unrecovered"] + large["unrecovered"],
        "storm_store_calls_per_client": large["store_calls_per_client"],
        "storm_store_reads_per_client": large["store_reads_per_client"],
        "storm_store_growth": round(large["store_calls_per_client"] / max(small["store_calls_per_client"], 1e-9), 3),
    }
    slow = await slow_clients(arguments, here)
    show("slow", slow)
    return row | {"storms": [small, large]} | slow


async def delay(here: Contender, order: Publish) -> tuple[np.ndarray[Any, Any], Published]:
    counts = await here.crowd.tell(Mark(_UNICAST))
    published = await here.publisher.ask(order, Published)
    await here.crowd.until(_UNICAST, counts.received + order.pushes)
    return await here.crowd.delays_ms(_UNICAST), published


async def storm(
    arguments: argparse.Namespace, here: Contender, store: Store, clients: int, by_second: Any, by_push: Any
) -> Row:
    before, started = await store.calls(), time.monotonic()
    counts = await here.crowd.tell(Mark(_UNICAST))
    pushes = round(arguments.storm_rate * arguments.storm_seconds)
    publishing = asyncio.create_task(
        here.publisher.ask(Publish(pushes, first=0, count=arguments.storm, rate=arguments.storm_rate), Published)
    )
    await asyncio.sleep(_UNSTEADY_S)
    seconds, attempts = await here.crowd.cut(_UNICAST, clients)
    ended_first = publishing.done()
    await publishing
    after = await here.crowd.until(_UNICAST, counts.received + pushes)
    calls = await store.calls() - before - by_second * (time.monotonic() - started) - by_push * pushes
    return {
        "clients": clients,
        "seconds": round(seconds, 2),
        "connect_attempts": attempts,
        "pushes": pushes,
        "published_all_along": not ended_first,
        "back": after.connected == arguments.storm,
        "received": after.received - counts.received,
        "gaps": after.gaps - counts.gaps,
        "unrecovered": after.unrecovered - counts.unrecovered,
        "store_calls_per_client": round(float(calls[0]) / clients, 2),
        "store_reads_per_client": round(float(calls[1]) / clients, 2),
    }


async def slow_clients(arguments: argparse.Namespace, here: Contender) -> Row:
    """The others' 99th percentile with 1 % more clients that misbehave, against that when these read."""
    assert isinstance(here.server, Nearcast)
    odd = max(len(MANNERS), arguments.storm // 100)
    order = Publish(
        round(arguments.rate * arguments.slow_seconds),
        first=0,
        count=arguments.storm,
        rate=arguments.rate,
        bulk=_BULK,
        bulk_size=_BULK_SIZE,
        bulk_rate=_BULK_RATE,
    )
    p99: dict[bool, list[float]] = {False: [], True: []}
    closed = 0.0
    lost_before = (await here.crowd.tell(Count(_UNICAST))).lost
    for turn in range(arguments.slow_rounds):
        for slow in (True, False) if turn % 2 else (False, True):
            await here.crowd.connect(_ODD, here.server.port, 10 * arguments.storm, odd, [_BULK], narrow=slow)
            if slow:
                await here.crowd.tell(Misbehave(_ODD))
            before = (await here.server.disconnects()).get("3008", 0.0)
            delays, _ = await delay(here, order)
            closed += slow * ((await here.server.disconnects()).get("3008", 0.0) - before)
            p99[slow].append(round(float(np.percentile(delays, 99)), 2))
            await here.crowd.tell(Drop(_ODD))
    return {
        "slow_client_p99_ratio": round(statistics.median(p99[True]) / statistics.median(p99[False]), 3),
        "slow_client_p99_ms": p99[True],
        "no_slow_client_p99_ms": p99[False],
        "slow_clients": odd * arguments.slow_rounds,
        "slow_clients_closed": round(closed),
        "healthy_clients_lost": (await here.crowd.tell(Count(_UNICAST))).lost - lost_before,
    }


async def new_store(folder: Path, stack: AsyncExitStack) -> Store:
    valkey = EmbeddedValkey(folder)
    await valkey.start()
    stack.push_async_callback(valkey.stop)
    store = Store(valkey.url)
    stack.push_async_callback(store.close)
    return store


async def nearcast(
    arguments: argparse.Namespace, folder: Path, store: Store, clients: int, stack: AsyncExitStack
) -> Contender:
    server = Nearcast(folder, store)
    await server.start()
    stack.push_async_callback(server.stop)
    publisher = await Process.start(folder / "publisher.log", "bench.gateway_publisher", "--redis", store.url)
    stack.push_async_callback(publisher.stop)
    crowd = await Crowd.start(folder, _processes(arguments, clients), stack)
    return Contender("nearcast", server, crowd, publisher, store)


def _processes(arguments: argparse.Namespace, clients: int) -> int:
    most: int = arguments.clients_per_process
    return -(-clients // most)


def show(name: str, row: Mapping[str, Any]) -> None:
    print(f"{name:<12}" + "  ".join(f"{key} {value}" for key, value in row.items()), flush=True)


def check_limit(arguments: argparse.Namespace) -> None:
    """Exits where a process may not have as many descriptors as the gateway needs connections."""
    together = max(arguments.connections + arguments.listeners, arguments.storm + arguments.storm // 100)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if together + _OTHER_DESCRIPTORS > most:
        raise SystemExit(f"{together:,} connections need more descriptors than the {most:,} of `ulimit -Hn`")


async def run(arguments: argparse.Namespace) -> Row:
    check_limit(arguments)
    raise_limit()
    found = None if arguments.no_centrifugo else shutil.which("centrifugo")
    if found is None:
        print("Centrifugo: left out, there is no centrifugo on the PATH", file=sys.stderr)
    row: Row = {"bench": "gateway"}
    for part in arguments.parts:
        async with AsyncExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nearcast-gateway-")))
            row |= await (
                capacity(arguments, folder, Path(found) if found else None, stack)
                if part == "capacity"
                else alone(arguments, folder, stack)
            )
    return row | {
        "connections": arguments.connections,
        "listeners": arguments.listeners,
        "storm": arguments.storm,
        "centrifugo_engine": None if found is None else "memory" if arguments.memory_engine else "redis",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", type=lambda text: text.split(","), default=["capacity", "alone"])
    parser.add_argument("--connections", type=int, default=15_000, help="for memory and unicast")
    parser.add_argument("--listeners", type=int, default=2_000, help="of a broadcast, besides")
    parser.add_argument("--pushes", type=int, default=10_000, help="unicast, in each round")
    parser.add_argument("--broadcasts", type=int, default=40, help="in each round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--idle-seconds", type=float, default=30.0, help="to see what connections cost by themselves")
    parser.add_argument("--storm", type=int, default=10_000, help="clients of the delay, the storm and the slow ones")
    parser.add_argument("--rate", type=float, default=2_000.0, help="pushes/s, for the delay")
    parser.add_argument("--seconds", type=float, default=15.0, help="of the delay's load")
    parser.add_argument("--storm-rate", type=float, default=500.0, help="pushes/s during a storm")
    parser.add_argument("--storm-seconds", type=float, default=30.0, help="so long they go on")
    parser.add_argument("--slow-rounds", type=int, default=3, help="with slow clients, and as many without")
    parser.add_argument("--slow-seconds", type=float, default=15.0, help="of each of them")
    parser.add_argument("--clients-per-process", type=int, default=7_500)
    parser.add_argument("--no-centrifugo", action="store_true", help="leave the peer out")
    parser.add_argument("--memory-engine", action="store_true", help="Centrifugo without the store")
    print(json.dumps(asyncio.run(run(parser.parse_args()))))


if __name__ == "__main__":
    main()
