"""Opt-outs in the very instant of a message: does anything leave the house after an opt-out was acknowledged?

    python -m bench.opt_outs [--count 100000] [--at-once 8] [--spread-ms 50]

Two processes of `nearcast serve` share a store: one has engine and dispatcher, the other the HTTP API. Each customer
causes one message, by an event that is appended to the log, and opts out over HTTP at a random instant within
`--spread-ms` before or after it; no more pairs at a time than the server keeps up with. The evidence is from outside:
when the SMS provider (a stand-in, in a process of its own) had read a message, and when the client had read the answer
to the opt-out, on one machine's clock.

The last line is one JSON object: `opt_outs` that were acknowledged, `sends_before` (messages read by the provider
before the acknowledgement), `sends_after_ack` (after it: must be 0), `not_sent`, and how far the opt-outs really were
from their events.
"""

import argparse
import asyncio
import json
import random
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs

import msgspec
import numpy as np
from redis.asyncio import Redis

from bench.processes import PARTITIONS, Process, environment, write
from bench.rig import Site, site
from nearcast import keys, topics
from nearcast.events import Action, Consent, Event, Profile, encode
from nearcast.ids import partition_of
from nearcast.world import Discount, Promotion, Store, What, Words
from offers.worldfile import WorldFile
from server.store import client_of
from server.valkey import die_with_parent
from tests.services.ports import free_ports

_KEY = "a-key-for-the-benchmark"
_SECRET = "s" * 32
#: Connections of the client that opts out; more than are ever busy.
_CONNECTIONS = 64
_PHONES = 10_000_000
#: With so much waiting at the server, nothing is added.
_BEHIND = 20
_SECRETS = ("NEARCAST_TOKEN_SECRET", "NEARCAST_COUPON_SECRET", "NEARCAST_LINK_SECRET")
WORLD = WorldFile(
    stores=[Store(id="s1", name="Main Street", lat=48.2, lng=16.37)],
    promotions=[
        Promotion(
            id="hello",
            name="Hello",
            trigger="app_open",
            what=What(discount=Discount(percent=10)),
            channels=["sms"],
            words={"en": Words(title="Hello")},
        )
    ],
)


class Port(msgspec.Struct):
    """Where the provider listens."""

    port: int


class Taken(msgspec.Struct):
    """When the provider had read each message, by phone number: on the clock of `time.monotonic_ns`."""

    at_ns: dict[str, list[int]]


class Report(msgspec.Struct):
    """Asks the provider what it has taken."""


class OptOut(NamedTuple):
    """One opt-out: when its event was handed to the log, when it was asked for, and when its answer had been read."""

    event_ns: int
    asked_ns: int
    answered_ns: int


async def provide() -> None:
    """The provider: takes every message, notes when, and answers at once. In a process of its own."""
    taken: dict[str, list[int]] = {}

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                body = await reader.readexactly(_length(head))
                taken.setdefault(parse_qs(body.decode())["To"][0], []).append(time.monotonic_ns())
                answer = b'{"sid":"SM1","status":"queued"}'
                writer.write(b"HTTP/1.1 201 Created\r\nContent-Length: %d\r\n\r\n%s" % (len(answer), answer))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    write(Port(server.sockets[0].getsockname()[1]))
    while await asyncio.to_thread(sys.stdin.readline):
        write(Taken(taken))
    server.close()


def _length(head: bytes) -> int:
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    return 0


class Client:
    """Opts customers out over HTTP, over connections that stay open."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._idle: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()

    async def connect(self) -> None:
        for _ in range(_CONNECTIONS):
            self._idle.put_nowait(await asyncio.open_connection("127.0.0.1", self._port))

    async def opt_out(self, customer: str) -> tuple[int, int]:
        """When it was asked for, and when the answer had been read (ns)."""
        reader, writer = await self._idle.get()
        if reader.at_eof() or writer.is_closing():
            # The server closes connections that nobody has used for a few seconds.
            writer.close()
            reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        asked_ns = time.monotonic_ns()
        body = b'{"scope":"all","granted":false}'
        writer.write(
            f"PUT /v1/customers/{customer}/consents HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {_KEY}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        head = await reader.readuntil(b"\r\n\r\n")
        answered_ns = time.monotonic_ns()
        await reader.readexactly(_length(head))
        self._idle.put_nowait((reader, writer))
        if not head.startswith(b"HTTP/1.1 204"):
            raise RuntimeError(f"the opt-out was refused: {head.decode()}")
        return asked_ns, answered_ns

    async def close(self) -> None:
        while not self._idle.empty():
            _, writer = self._idle.get_nowait()
            writer.close()
            await writer.wait_closed()


@asynccontextmanager
async def serving(place: Site, roles: str, ready_port: int, **settings: str) -> AsyncIterator[None]:
    """A process of `nearcast serve` that answers on its port."""
    log = place.folder / f"{roles}.log"
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *(Path(sys.executable).with_name("nearcast"), "serve"),
            env=environment(
                NEARCAST_REDIS_URL=place.redis,
                NEARCAST_ROLES=json.dumps(roles.split()),
                NEARCAST_PARTITIONS=str(PARTITIONS),
                NEARCAST_API_KEYS=json.dumps({"intake": _KEY, "admin": _KEY + "-2"}),
                NEARCAST_API_PORT=str(ready_port),
                NEARCAST_QUIET_HOURS="",
                **dict.fromkeys(_SECRETS, _SECRET),
                **settings,
            ),
            stdout=output,
            stderr=output,
            preexec_fn=die_with_parent,
        )
    try:
        async with asyncio.timeout(60):
            while b"nearcast is ready" not in log.read_bytes():
                if process.returncode is not None:
                    raise RuntimeError(log.read_text(errors="replace"))
                await asyncio.sleep(0.05)
        yield
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def append(redis: Redis, events: list[Event]) -> None:
    """Put events into the log, as a producer of the retailer's would."""
    async with redis.pipeline(transaction=False) as pipe:
        for event in events:
            pipe.xadd(_stream(partition_of(event.customer, PARTITIONS)), {"k": event.customer, "v": encode(event)})
        await pipe.execute()


async def settled(redis: Redis, within_s: float) -> None:
    """The engine has read everything, and the outbox is empty."""
    end_s = time.monotonic() + within_s
    while await waiting(redis):
        if time.monotonic() > end_s:
            raise RuntimeError("the server did not get done with it in time")
        await asyncio.sleep(0.1)


def _stream(partition: int) -> str:
    return keys.log_stream(topics.ACTIONS, partition)


def customer_of(number: int) -> str:
    return f"c{number}"


def phone_of(number: int) -> str:
    return f"+1555{_PHONES + number}"


async def introduce(redis: Redis, count: int) -> None:
    """Tell the engine of the customers: whom SMS reach, and who consent to them."""
    now_ms = time.time_ns() // 1_000_000
    for first in range(0, count, 1_000):
        numbers = range(first, min(first + 1_000, count))
        await append(redis, [event for number in numbers for event in _introduction(number, now_ms)])


def _introduction(number: int, now_ms: int) -> list[Event]:
    uid = customer_of(number)
    return [
        Profile(id=f"p{number}", uid=uid, ts=now_ms, phone=phone_of(number)),
        Consent(id=f"k{number}", uid=uid, ts=now_ms, scope="sms", granted=True),
    ]


async def waiting(redis: Redis) -> int:
    """Records that the engine has not read yet, and entries of the outbox."""
    async with redis.pipeline(transaction=False) as pipe:
        for partition in range(PARTITIONS):
            pipe.xlen(keys.outbox(partition))
            pipe.hget(keys.offsets(partition), topics.ACTIONS)
            pipe.xrevrange(keys.log_stream(topics.ACTIONS, partition), count=1)
        replies = await pipe.execute()
    behind = 0
    for place in range(0, len(replies), 3):
        outbox, stored, last = replies[place : place + 3]
        behind += outbox
        if last and stored != last[0][0]:
            after = f"({(stored or b'0').decode()}"
            behind += len(await redis.xrange(_stream(place // 3), after, count=_BEHIND) or [])
    return behind


async def run(redis: Redis, client: Client, arguments: argparse.Namespace) -> list[OptOut]:
    """All events and opt-outs, as fast as the server gets done with them: so that each message is about to be sent when
    its opt-out comes, and not a minute later."""
    dice = random.Random(arguments.seed)
    numbers = iter(range(arguments.count))
    found: list[OptOut] = [OptOut(0, 0, 0)] * arguments.count
    keeps_up = asyncio.Event()

    async def watch() -> None:
        while True:
            if await waiting(redis) < _BEHIND:
                keeps_up.set()
            else:
                keeps_up.clear()
            await asyncio.sleep(0.05)

    async def happen(number: int, at_s: float) -> int:
        await asyncio.sleep(at_s - time.monotonic())
        at_ns = time.monotonic_ns()
        await append(redis, [Action(id=f"a{number}", uid=customer_of(number), action="app_open")])
        return at_ns

    async def leave(number: int, at_s: float) -> tuple[int, int]:
        await asyncio.sleep(at_s - time.monotonic())
        return await client.opt_out(customer_of(number))

    async def one_after_another() -> None:
        for number in numbers:
            if number % (arguments.count // 20 or 1) == 0:
                print(f"{number} of {arguments.count} opt-outs", file=sys.stderr, flush=True)
            await keeps_up.wait()
            at_s = time.monotonic() + arguments.spread_ms / 1000
            spread_s = dice.uniform(-arguments.spread_ms, arguments.spread_ms) / 1000
            at_ns, times = await asyncio.gather(happen(number, at_s), leave(number, at_s + spread_s))
            found[number] = OptOut(at_ns, *times)

    watching = asyncio.create_task(watch())
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(arguments.at_once):
                group.create_task(one_after_another())
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
    return found


async def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    async with site("streams", None) as place, AsyncExitStack() as stack:
        provider = await Process.start(place.folder / "provider.log", "bench.opt_outs", "--provide")
        stack.push_async_callback(provider.stop)
        provider_port = (await provider.answer(Port)).port
        api_port, idle_port = free_ports(2)
        world = place.folder / "world.json"
        world.write_bytes(msgspec.json.encode(WORLD))
        await stack.enter_async_context(
            serving(
                place,
                "engine dispatcher",
                idle_port,
                NEARCAST_WORLD_FILES=json.dumps([str(world)]),
                NEARCAST_SMS_URL=f"http://127.0.0.1:{provider_port}",
                NEARCAST_SMS_ACCOUNT="AC1",
                NEARCAST_SMS_AUTH_TOKEN="token",
                NEARCAST_SMS_FROM="+15550199",
            )
        )
        await stack.enter_async_context(serving(place, "api", api_port))
        redis = client_of(place.redis)
        stack.push_async_callback(redis.aclose)
        await introduce(redis, arguments.count)
        await settled(redis, 600)
        client = Client(api_port)
        await client.connect()
        stack.push_async_callback(client.close)
        began_s = time.monotonic()
        opt_outs = await run(redis, client, arguments)
        seconds = time.monotonic() - began_s
        await settled(redis, 120)
        taken = (await provider.ask(Report(), Taken)).at_ns
    return summary(opt_outs, taken) | {
        "per_s": round(arguments.count / seconds, 1),
        "at_once": arguments.at_once,
        "spread_ms": arguments.spread_ms,
    }


def summary(opt_outs: list[OptOut], taken: dict[str, list[int]]) -> dict[str, Any]:
    after: list[float] = []
    before = not_sent = 0
    for number, opt_out in enumerate(opt_outs):
        times_ns = taken.get(phone_of(number), [])
        not_sent += not times_ns
        before += sum(at_ns <= opt_out.answered_ns for at_ns in times_ns)
        after += [(at_ns - opt_out.answered_ns) / 1e6 for at_ns in times_ns if at_ns > opt_out.answered_ns]
    offsets_ms = np.array([(each.asked_ns - each.event_ns) / 1e6 for each in opt_outs])
    answers_ms = np.array([(each.answered_ns - each.asked_ns) / 1e6 for each in opt_outs])
    return {
        "bench": "opt_outs",
        "opt_outs": len(opt_outs),
        "sends_after_ack": len(after),
        "latest_after_ms": round(max(after, default=0.0), 3),
        "sends_before": before,
        "not_sent": not_sent,
        "offset_ms": [round(float(each), 1) for each in np.percentile(offsets_ms, (1, 50, 99))],
        "answer_ms": [round(float(each), 1) for each in np.percentile(answers_ms, (50, 99, 100))],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--at-once", type=int, default=8, help="pairs of an event and an opt-out under way at a time")
    parser.add_argument("--spread-ms", type=float, default=50.0)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--provide", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.provide:
        asyncio.run(provide())
        return
    print(json.dumps(asyncio.run(measure(arguments))), flush=True)


if __name__ == "__main__":
    main()
