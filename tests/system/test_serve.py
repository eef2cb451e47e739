"""`nearcast serve` on Kafka and an outside Valkey; with dependencies that go away; and told to do the wrong thing."""

import asyncio
import contextlib
import json
import signal
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from aiokafka import AIOKafkaProducer
from redis.asyncio import Redis

from clients.client import Device, Nearcast, Refused
from nearcast import keys
from nearcast.events import Cart, Consent, Location, Profile
from nearcast.ids import partition_of
from nearcast.world import Display
from server.log.kafka import KafkaOptions
from tests.server.town import LAT, LNG, WORLD, metres_north
from tests.services.valkey import ValkeyProcess
from tests.system.process import KEYS, Server, decisions, eventually

DOCUMENT = msgspec.to_builtins(WORLD)


async def shopper(nearcast: Nearcast, uid: str, *scopes: Any) -> None:
    """Someone who consents to some channels, with beans in the cart."""
    await nearcast.events(
        [
            *(Consent(id=f"{uid}-{scope}", uid=uid, scope=scope, granted=True) for scope in scopes),
            Profile(id=f"{uid}-p", uid=uid, email=f"{uid}@example.com", phone="+43660555000"),
            Cart(id=f"{uid}-cart", uid=uid, action="add", sku="beans"),
        ]
    )

    async def has_cart() -> bool:
        try:
            return "beans" in (await nearcast.customer(uid))["customer"]["cart"]
        except Refused:
            return False

    await eventually(has_cart)


def near(uid: str, name: str) -> Location:
    return Location(id=f"{uid}-{name}", uid=uid, lat=metres_north(80), lng=LNG, accuracy_m=5.0)


@pytest.mark.kafka
async def test_on_kafka_and_an_outside_valkey(
    tmp_path: Path, redis: Redis, valkey_url: str, kafka_options: KafkaOptions
) -> None:
    """The same job: a fix that any Kafka producer wrote leads to a push on a phone, and the coupon is good once."""
    kafka = {"kafka": kafka_options.bootstrap, "kafka_idempotent": str(kafka_options.idempotent).lower()}
    async with (
        Server(tmp_path, **kafka, redis_url=valkey_url, partitions="3") as server,
        server.client() as admin,
        server.client("pos") as till,
    ):
        await admin.put_catalogue(DOCUMENT)
        await shopper(admin, "ann", "websocket")
        producer = AIOKafkaProducer(bootstrap_servers=kafka_options.bootstrap)
        await producer.start()
        async with Device(server.gateway, server.token("ann")) as phone:
            body = {"uid": "ann", "lat": metres_north(80), "long": LNG, "accuracy": 6}
            await producer.send_and_wait("customers.locations", json.dumps(body).encode(), key=b"ann")
            await producer.send_and_wait("customers.locations", b"not json", key=b"ann")
            async with asyncio.timeout(20):
                push = await anext(aiter(phone))
            assert (push.kind, push.promotion, push.sku) == ("offer", "abandoned", "beans")
            assert push.title == "Espresso beans: 15% off at Graben"
            await phone.ack(push)
            coupon = await phone.apply(push)
            assert (await phone.apply(push)).code == coupon.code
            assert (await till.reserve(coupon.code, store="graben", redemption_id="r0"))["state"] == "reserved"
            with pytest.raises(Refused, match="reserved"):
                await till.redeem(coupon.code, store="graben", redemption_id="r1")
            assert (await till.release(coupon.code, store="graben", redemption_id="r0"))["state"] == "applied"
            redeemed = await till.redeem(
                coupon.code, store="graben", redemption_id="r1", revenue_cents=1_690, discount_cents=253
            )
            assert (redeemed["state"], redeemed["discount_cents"]) == ("redeemed", 253)
            with pytest.raises(Refused, match="already_redeemed"):
                await till.redeem(coupon.code, store="graben", redemption_id="r2")
        await producer.stop()

        async def letters() -> list[Any]:
            found: list[Any] = await redis.xrange(keys.dead_letters(partition_of("ann", 3)))
            return found

        ((_, letter),) = await eventually(letters)
        assert (letter[b"value"], letter[b"reason"]) == (b"not json", b"malformed_event")

        async def status() -> str:
            (message,) = (await admin.customer("ann"))["customer"]["messages"]
            return str(message["status"])

        async def redeemed_receipt() -> bool:
            return await status() == "redeemed"

        async def brought_back() -> bool:
            return await status() == "applied"

        await eventually(redeemed_receipt)
        await till.rollback(coupon.code, store="graben", redemption_id="r1")
        await eventually(brought_back)
        assert await server.stop() == 0
    assert "Traceback" not in server.log


async def test_opt_out_means_nothing_on_any_channel(tmp_path: Path) -> None:
    """Someone who opted out is sent nothing, although everything else would be right; the phone stays silent."""
    async with Server(tmp_path) as server, server.client() as admin:
        await admin.put_catalogue(DOCUMENT)
        await shopper(admin, "ann", "websocket", "sms", "email")
        await shopper(admin, "bob", "websocket")
        await admin.set_consent("ann", "all", granted=False)
        async with (
            Device(server.gateway, server.token("ann")) as ann,
            Device(server.gateway, server.token("bob")) as bob,
        ):
            await admin.events([near("ann", "1"), near("bob", "1")])
            async with asyncio.timeout(20):
                push = await anext(aiter(bob))
            assert push.kind == "offer"
            assert not ann._pushes
        assert await decisions(server, "ann") == []


async def test_a_valkey_that_dies_and_comes_back(tmp_path: Path) -> None:
    """While the store is away, intake says so (503); once it is back, what was acknowledged before or after counts."""
    folder = tmp_path / "valkey"
    folder.mkdir()
    valkey = ValkeyProcess(folder)
    valkey.start()
    try:
        async with Server(tmp_path, redis_url=valkey.url) as server, server.client() as admin:
            await admin.put_catalogue(DOCUMENT)
            await shopper(admin, "ann", "websocket")
            await asyncio.to_thread(valkey.kill)
            async with httpx.AsyncClient(base_url=server.url, trust_env=False) as http:
                answer = await http.post(
                    "/v1/events",
                    content=b'{"type":"location","uid":"ann","lat":1,"lng":1}',
                    headers={"Authorization": f"Bearer {KEYS['intake']}"},
                )
                assert answer.status_code == 503
                assert answer.headers["content-type"] == "application/problem+json"
                assert (await http.get("/ready")).status_code == 503
                assert (await http.get("/health")).status_code == 200
            await asyncio.to_thread(valkey.start)
            await server.until_ready()
            async with Device(server.gateway, server.token("ann")) as phone:
                await eventually(lambda: _accepted(admin, near("ann", "1")))
                async with asyncio.timeout(30):
                    push = await anext(aiter(phone))
            assert push.promotion == "abandoned"
    finally:
        await asyncio.to_thread(valkey.kill)


async def _accepted(admin: Nearcast, event: Location) -> bool:
    return (await admin.events([event])).accepted == 1


async def test_bodies_too_large(tmp_path: Path) -> None:
    """A 100 MB message is refused by HTTP and by the gateway, without being held in memory; the server goes on."""
    async with Server(tmp_path) as server, httpx.AsyncClient(base_url=server.url, trust_env=False) as http:
        assert server.process is not None
        status = Path(f"/proc/{server.process.pid}/status")

        def resident_kb() -> int:
            return int(next(line for line in status.read_text().splitlines() if line.startswith("VmRSS")).split()[1])

        before = resident_kb()

        reader, writer = await asyncio.open_connection("127.0.0.1", server.api_port)
        writer.write(
            f"POST /v1/events HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEYS['intake']}\r\n"
            "Transfer-Encoding: chunked\r\n\r\n".encode()
        )
        answered = asyncio.create_task(reader.readuntil(b"}"))
        sent = 0
        with contextlib.suppress(ConnectionError):
            while not answered.done() and sent < 100_000_000:
                writer.write(b"10000\r\n" + b"x" * 65_536 + b"\r\n")
                await writer.drain()
                sent += 65_536
        answer = await answered
        writer.close()
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert b"application/problem+json" in answer
        assert b"body_too_large" in answer
        assert sent < 10_000_000
        assert (await http.get("/health")).status_code == 200
        assert resident_kb() - before < 40_000


async def test_a_refused_body_is_answered(tmp_path: Path) -> None:
    """Also on a connection in use, the caller of a body that is a little too large gets the 413, not a reset."""
    async with Server(tmp_path) as server, httpx.AsyncClient(base_url=server.url, trust_env=False) as http:
        key = {"Authorization": f"Bearer {KEYS['intake']}"}
        for _ in range(20):
            for _ in range(3):
                assert (await http.post("/v1/events", content=b"{}", headers=key)).status_code == 400
            assert (await http.post("/v1/events", content=b"x" * 300_000, headers=key)).status_code == 413


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"partitions": "none"}, "NEARCAST_PARTITIONS"),
        ({"api_prot": "1"}, "NEARCAST_API_PROT"),
        ({"token_secret": "short"}, "NEARCAST_TOKEN_SECRET"),
        ({"demo": "true", "api_host": "0.0.0.0"}, "NEARCAST_DEMO"),
        ({"sms_account": "AC1"}, "NEARCAST_SMS_AUTH_TOKEN"),
        ({"model_dir": "/nowhere"}, "/nowhere"),
        ({"world_files": '["/nowhere.yaml"]'}, "/nowhere.yaml"),
        ({"data_dir": "/proc/nowhere"}, "/proc/nowhere"),
        ({"redis_url": "redis://127.0.0.1:1/0"}, "store can't be reached"),
        ({"kafka": "127.0.0.1:1"}, "Kafka can't be reached"),
        ({"api_host": "203.0.113.1"}, "NEARCAST_API_HOST"),
        ({"gateway_host": "203.0.113.1"}, "NEARCAST_GATEWAY_HOST"),
    ],
)
async def test_wrong_settings_stop_the_start(tmp_path: Path, settings: dict[str, str], named: str) -> None:
    """A setting that is wrong or unknown ends the start with exit code 2 and a sentence that names it."""
    server = Server(tmp_path, **settings)
    await server.start(wait=False)
    assert await server.exit_code() == 2
    assert named in server.log
    assert "Traceback" not in server.log


async def test_one_data_directory_one_server(tmp_path: Path) -> None:
    """A second server on the same data directory doesn't start, and doesn't disturb the first."""
    async with Server(tmp_path) as first, first.client() as admin:
        second = Server(tmp_path)
        second.folder = tmp_path / "second"
        second.folder.mkdir()
        await second.start(wait=False)
        assert await second.exit_code() == 2
        assert "in use" in second.log
        assert await admin.ready()


async def test_stops_in_order(tmp_path: Path) -> None:
    """SIGTERM ends the server, its devices are told to come back, and its Valkey is gone."""
    server = Server(tmp_path)
    await server.start()
    async with Device(server.gateway, server.token("ann")) as phone:
        assert phone.connected
        assert server.process is not None
        server.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(20):
            assert await server.process.wait() == 0
    access = json.loads((tmp_path / "data" / "valkey" / "access.json").read_bytes())
    with pytest.raises(OSError, match="Connect call failed"):
        await asyncio.open_connection("127.0.0.1", access["port"])


def test_the_town_fits_the_world() -> None:
    """The world document of these tests is what `nearcast.world` would write."""
    assert DOCUMENT["products"][1]["displays"][0]["store"] == "graben"
    assert Display(store="graben", lat=LAT, lng=LNG).radius_m < 1
