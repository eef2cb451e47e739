"""The rig: starts the processes of one deployment, drives traffic through them, waits until it is quiet, and checks."""

import asyncio
import contextlib
import json
import os
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import httpx
from aiokafka import AIOKafkaProducer
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import ConstantBackoff
from redis.exceptions import RedisError

from nearcast import keys
from nearcast.clock import SystemClock
from server.log.base import Record
from server.world import WorldStore
from tests.channels.sms_provider import ACCOUNT, TOKEN, SmsProvider
from tests.faults.checks import violations
from tests.faults.evidence import Evidence, LogReader, gather, stored_offsets
from tests.faults.history import History
from tests.faults.processes import Unexpected, Worker
from tests.faults.provider import RobustSmsProvider
from tests.faults.traffic import CART_ABANDONED_AFTER_S, PARTITIONS, WORLD, Round, Sent
from tests.server.rig import committed
from tests.services.ports import free_ports
from tests.services.valkey import ValkeyProcess
from tests.system.process import KEYS, SECRET

QUIET_WITHIN_S = 120.0
#: Takes a guard away from every worker (`worker.VARIANTS`), to see a recipe fail.
_VARIANT = os.environ.get("NEARCAST_TEST_VARIANT", "")


class Rig:
    """One deployment: workers by name, one store, one broker, one SMS provider. Made by `open_rig`."""

    def __init__(
        self,
        *,
        folder: Path,
        seed: int,
        history: History,
        valkey: ValkeyProcess,
        redis: Redis,
        bootstrap: str,
        provider: SmsProvider,
        log: LogReader,
        producer: AIOKafkaProducer,
    ) -> None:
        self.seed = seed
        self.history = history
        self.valkey = valkey
        self.redis = redis
        self.log = log
        self.provider = provider
        self.workers: dict[str, Worker] = {}
        self.acknowledged: list[Record] = []
        self._folder = folder
        self._bootstrap = bootstrap
        self._producer = producer
        self._rounds = 0
        (self.api_port,) = free_ports(1)

    def add(self, name: str, *roles: str, variant: str = "", store_url: str = "", **patience: int) -> Worker:
        """A worker with these roles, not started yet."""
        settings = {
            "NEARCAST_REDIS_URL": store_url or self.valkey.url,
            "NEARCAST_KAFKA": self._bootstrap,
            "NEARCAST_PARTITIONS": str(PARTITIONS),
            "NEARCAST_ROLES": json.dumps(roles),
            "NEARCAST_API_PORT": str(self.api_port),
            "NEARCAST_API_KEYS": json.dumps(KEYS),
            "NEARCAST_TOKEN_SECRET": SECRET,
            "NEARCAST_COUPON_SECRET": SECRET,
            "NEARCAST_LINK_SECRET": SECRET,
            "NEARCAST_QUIET_HOURS": "",
            # Small, so that a burst is many batches.
            "NEARCAST_BATCH_EVENTS": "40",
            "NEARCAST_CART_ABANDONED_AFTER_S": str(CART_ABANDONED_AFTER_S),
            "NEARCAST_SMS_URL": self.provider.url,
            "NEARCAST_SMS_ACCOUNT": ACCOUNT,
            "NEARCAST_SMS_AUTH_TOKEN": TOKEN,
            "NEARCAST_SMS_FROM": "+43720000000",
        }
        worker = Worker(name, self._folder, settings, self.history, variant=variant or _VARIANT, **patience)
        self.workers[name] = worker
        return worker

    def round(self, *, of_each: int = 4, steps: int = 8) -> Round:
        """A new group of customers and what they will do."""
        self._rounds += 1
        return Round(self.seed, f"r{self._rounds}", SystemClock().now_ms(), of_each=of_each, steps=steps)

    async def start(self, *workers: Worker) -> None:
        for worker in workers:
            await worker.start()
        await asyncio.gather(*(worker.ready() for worker in workers))

    async def produce(self, records: Sequence[Sent]) -> None:
        """Append to the log; when this returns, all of it is acknowledged (and noted as such)."""
        for first in range(0, len(records), 500):
            some = records[first : first + 500]
            futures = [await self._producer.send(r.topic, r.value, r.key.encode(), r.partition) for r in some]
            for sent, written in zip(some, await asyncio.gather(*futures), strict=True):
                self.acknowledged.append(
                    Record(sent.topic, sent.partition, str(written.offset), sent.key, sent.value, written.timestamp)
                )
        self.history.note("acknowledged", records=len(records), in_all=len(self.acknowledged))

    async def produce_slowly(self, records: Sequence[Sent], seconds: float) -> None:
        """Produce the records, evenly over about so many seconds."""
        size = max(1, round(len(records) / seconds / 5))
        for first in range(0, len(records), size):
            await asyncio.gather(self.produce(records[first : first + size]), asyncio.sleep(0.2))

    async def quiet(self, *, dispatched: bool = True, within_s: float = QUIET_WITHIN_S) -> None:
        """Wait until everything in the log is committed, every due timer fired, and the outbox empty. Twice in a row,
        since what the dispatcher reports comes back through the log."""
        deadline = time.monotonic() + within_s
        calm, last = 0, None
        while calm < 2:
            for worker in self.workers.values():
                if worker.was_started and not worker.running:
                    raise Unexpected(f"{worker.name} has died:\n{worker.log[-4_000:]}")
            state = await self._unfinished(dispatched)
            calm = calm + 1 if state is not None and not any(state[:-1]) and state == last else 0
            last = state
            if time.monotonic() > deadline:
                logs = "\n".join(f"--- {worker.name}\n{worker.log[-1_500:]}" for worker in self.workers.values())
                raise Unexpected(f"not quiet within {within_s} s: {state}\n{logs}")
            await asyncio.sleep(0.1)
        self.history.note("quiet")

    async def epochs(self) -> list[int]:
        """How often each partition was taken over."""
        return [int(await self.redis.get(keys.epoch(partition)) or 0) for partition in range(PARTITIONS)]

    async def taken_over_since(self, epochs: Sequence[int]) -> bool:
        """Whether every partition was taken over anew."""
        return all(now > then for now, then in zip(await self.epochs(), epochs, strict=True))

    async def caught_up_on(self, topic: str) -> bool:
        """Whether everything in a topic is committed."""
        ends, offsets = await self.log.ends(), await stored_offsets(self.redis)
        mine = {partition: end for (name, partition), end in ends.items() if name == topic and end}
        return all(offsets[partition].get(topic) == str(end - 1) for partition, end in mine.items())

    async def quiet_without(self, *gone: Worker) -> None:
        """`quiet`, although these workers have ended."""
        for worker in gone:
            del self.workers[worker.name]
        await self.quiet()

    async def _unfinished(self, dispatched: bool) -> tuple[int, int, int, int] | None:
        """Records to read, timers due, outbox entries; and the sum of all ends. None while the store is away."""
        try:
            ends = await self.log.ends()
            offsets = await stored_offsets(self.redis)
            unread = sum(end - 1 - int(offsets[partition].get(topic, -1)) for (topic, partition), end in ends.items())
            now_ms = SystemClock().now_ms()
            due = sum([await self.redis.zcount(keys.timers(n), "-inf", now_ms) for n in range(PARTITIONS)])
            waiting = sum([await self.redis.xlen(keys.outbox(n)) for n in range(PARTITIONS)]) if dispatched else 0
        except (RedisError, OSError):
            return None
        return unread, due, waiting, sum(ends.values())

    async def gather(self) -> Evidence:
        return await gather(self.redis, self.log, self.provider)

    async def violations(self, **leniency: bool) -> list[str]:
        """What is wrong, once all is quiet; the arguments are those of `checks.violations`."""
        found = violations(await self.gather(), self.acknowledged, **leniency)
        self.history.note("checked", violations=len(found))
        for sentence in found:
            self.history.note("violation", says=sentence)
        return found

    async def offers(self) -> list[tuple[str, str]]:
        """(customer, decision) of every offer that stands in the store."""
        found = (await committed(self.redis)).decisions.values()
        return sorted((decision.customer, decision.id) for decision in found if decision.outcome == "offer")

    async def coupons(self, offers: Iterable[tuple[str, str]]) -> dict[str, str]:
        """Apply the coupons of these (customer, decision) through the HTTP API, side by side; decision → code."""
        slots = asyncio.Semaphore(16)

        async def apply(http: httpx.AsyncClient, customer: str, decision: str) -> tuple[str, str]:
            body = {"customer": customer, "decision": decision}
            async with slots, asyncio.timeout(30):
                # 503 asks to try again: after a restart of the store, every connection to it fails once.
                while (answer := await http.post("/v1/coupons/apply", json=body)).status_code == 503:
                    await asyncio.sleep(0.1)
            answer.raise_for_status()
            return decision, answer.json()["code"]

        async with self.http("intake") as http:
            return dict(await asyncio.gather(*(apply(http, customer, decision) for customer, decision in offers)))

    def http(self, role: str) -> httpx.AsyncClient:
        """A client of the API, with the key of a role."""
        headers = {"Authorization": f"Bearer {KEYS[role]}"}
        return httpx.AsyncClient(
            trust_env=False, headers=headers, base_url=f"http://127.0.0.1:{self.api_port}", timeout=30.0
        )


@asynccontextmanager
async def open_rig(folder: Path, bootstrap: str, seed: int, history: History) -> AsyncIterator[Rig]:
    """A rig with its own store, an empty log and the rig's town; everything ends with it."""
    history.note("seed", seed=seed)
    async with AsyncExitStack() as stack:
        store = folder / "valkey"
        store.mkdir()
        valkey = ValkeyProcess(store)
        stack.callback(valkey.stop)
        valkey.start()
        # Recipes kill the store; what the driver asks of it may be asked again.
        again = Retry(ConstantBackoff(0.05), 200)
        redis = await stack.enter_async_context(Redis.from_url(valkey.url, decode_responses=False, retry=again))
        await WorldStore(redis).put(WORLD)
        provider = RobustSmsProvider()
        stack.push_async_callback(asyncio.to_thread, provider.close)
        log = LogReader(bootstrap)
        await log.start()
        stack.push_async_callback(log.close)
        producer = AIOKafkaProducer(bootstrap_servers=bootstrap, acks="all", enable_idempotence=True, linger_ms=1)
        await producer.start()
        stack.push_async_callback(producer.stop)
        rig = Rig(
            folder=folder,
            seed=seed,
            history=history,
            valkey=valkey,
            redis=redis,
            bootstrap=bootstrap,
            provider=provider,
            log=log,
            producer=producer,
        )
        try:
            yield rig
        finally:
            for worker in rig.workers.values():
                with contextlib.suppress(ProcessLookupError):
                    await worker.kill()
