"""Erasing somebody of whom everything is known: afterwards nothing in the store and in the server's log names them."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import msgspec
import pytest
from redis.asyncio import Redis

from clients.client import Device, Nearcast, Refused
from nearcast import topics
from nearcast.events import Action, Cart, Consent, Identify, Line, Location, Profile, Purchase
from nearcast.ids import partition_of
from server.log.base import Entry
from server.log.streams import StreamsLog
from tests.channels.mail_server import MailServer
from tests.channels.sms_provider import ACCOUNT, TOKEN, SmsProvider
from tests.server.town import WORLD, metres_north
from tests.system.process import KEYS, Server, decisions, eventually

PARTITIONS = 3
UID, VISITOR, NAME = "quirinia-7731", "visitor-9942", "Quirinia Zwettler"
PHONE, EMAIL = "+4366012398765", "q.zwettler@example.com"
LNG = 16.370_012_3
#: What must be found nowhere. Numbers as JSON and MessagePack (big-endian doubles) write them.
TRACES = [
    *(text.encode() for text in (UID, VISITOR, NAME, PHONE, PHONE[1:], EMAIL)),
    b"16.3700123",
    msgspec.msgpack.encode(LNG),
]


@pytest.fixture
def sms() -> Iterator[SmsProvider]:
    """Takes every SMS."""
    provider = SmsProvider()
    yield provider
    provider.close()


@pytest.fixture
def mail() -> Iterator[MailServer]:
    """Takes every mail."""
    server = MailServer()
    yield server
    server.stop()


@pytest.fixture
async def server(
    tmp_path: Path, redis: Redis, valkey_url: str, sms: SmsProvider, mail: MailServer
) -> AsyncIterator[Server]:
    """Everything in one process, on a store that the test can look into."""
    async with Server(
        tmp_path,
        redis_url=valkey_url,
        partitions=str(PARTITIONS),
        log_level="debug",
        sms_url=sms.url,
        sms_account=ACCOUNT,
        sms_auth_token=TOKEN,
        sms_from="+4312345",
        smtp_host="127.0.0.1",
        smtp_port=str(mail.port),
        smtp_security="none",
        mail_from="shop@example.com",
    ) as server:
        yield server


async def everything(redis: Redis) -> dict[bytes, bytes]:
    """Every key of the store with all that it holds, whatever its type."""
    found: dict[bytes, bytes] = {}
    async for key in redis.scan_iter(count=1_000):
        match (await redis.type(key)).decode():
            case "string":
                parts = [await redis.get(key)]
            case "hash":
                parts = [part for pair in (await redis.hgetall(key)).items() for part in pair]
            case "list":
                parts = await redis.lrange(key, 0, -1)
            case "set":
                parts = list(await redis.smembers(key))
            case "zset":
                parts = await redis.zrange(key, 0, -1)
            case "stream":
                parts = [part for _, fields in await redis.xrange(key) for pair in fields.items() for part in pair]
            case other:
                # Deleted since, or a type that this test has to learn.
                assert other == "none", f"{key!r} is a {other}"
                continue
        found[key] = b"\n".join([key, *parts])
    return found


async def traces(redis: Redis) -> dict[bytes, list[bytes]]:
    """Where in the store something names the customer."""
    found = {key: [trace for trace in TRACES if trace in text] for key, text in (await everything(redis)).items()}
    return {key: named for key, named in found.items() if named}


def fix(uid: str, metres: float) -> Location:
    return Location(uid=uid, lat=metres_north(metres), lng=LNG, accuracy_m=2.0, source="beacon")


async def a_whole_life(
    server: Server, admin: Nearcast, till: Nearcast, sms: SmsProvider, mail: MailServer, log: StreamsLog
) -> str:
    """A visitor signs in, shops, is written to on every channel and uses a coupon; the coupon's code."""
    await admin.events(
        [
            Cart(anonymous_id=VISITOR, action="add", sku="beans"),
            Location(anonymous_id=VISITOR, lat=metres_north(2_000), lng=LNG),
            Action(anonymous_id=VISITOR, action="product_view", sku="grinder"),
        ]
    )
    await admin.events(
        [
            Identify(uid=UID, anonymous_id=VISITOR),
            Profile(uid=UID, name=NAME, email=EMAIL, phone=PHONE, loyalty="gold"),
            Purchase(uid=UID, items=[Line(sku="gone", amount_cents=500)]),
            Consent(uid=UID, scope="sms", granted=True),
        ]
    )

    async def signed_in() -> bool:
        try:
            known = (await admin.customer(UID))["customer"]
        except Refused:
            return False
        return bool("beans" in known["cart"] and known["consents"] and known["name"])

    await eventually(signed_in)
    await admin.events([fix(UID, 80)])
    await eventually(lambda: _nonempty(sms.held))
    assert PHONE in str(sms.held)

    await admin.set_consent(UID, "sms", granted=False)
    await admin.set_consent(UID, "email", granted=True)
    await eventually(lambda: _consents(admin, "email"))
    await admin.events([fix(UID, 2)])
    await eventually(lambda: _nonempty(mail.mailbox.recipients))
    assert mail.mailbox.recipients == [EMAIL]

    await admin.set_consent(UID, "websocket", granted=True)
    await eventually(lambda: _consents(admin, "websocket"))
    async with Device(server.gateway, server.token(UID)) as phone:
        await admin.events([fix(UID, 10)])
        push = await anext(aiter(phone))
        await phone.ack(push)
        coupon = await phone.apply(push)
        await till.redeem(coupon.code, store="graben", redemption_id="r1")

    await log.append(
        [
            Entry(topics.LOCATIONS, UID, f'{{"uid":"{UID}","lat":91,"lng":{LNG}}}'.encode()),
            Entry(topics.LOCATIONS, f"not {UID}", f'{{"uid":"{UID}","lat":1,"lng":{LNG}}}'.encode()),
            Entry(topics.ACTIONS, UID, f"broken {NAME}".encode()),
        ]
    )
    return coupon.code


async def _nonempty(held: object) -> bool:
    return bool(held)


async def _consents(admin: Nearcast, scope: str) -> bool:
    return bool((await admin.customer(UID))["customer"]["consents"].get(scope, [False])[0])


async def erasure(server: Server, customer: str) -> str:
    """How far it is."""
    async with httpx.AsyncClient(trust_env=False, headers={"Authorization": f"Bearer {KEYS['admin']}"}) as http:
        answer = await http.get(f"{server.url}/v1/erasures/{customer}")
        answer.raise_for_status()
        return str(answer.json()["state"])


async def test_nothing_is_left(
    server: Server, redis: Redis, valkey_url: str, sms: SmsProvider, mail: MailServer
) -> None:
    """Id, name, phone, e-mail and coordinates are in no key, value or line of the log; the neighbour keeps it all."""
    log = StreamsLog(valkey_url, PARTITIONS)
    await log.start()
    async with server.client() as admin, server.client("pos") as till:
        await admin.put_catalogue(msgspec.to_builtins(WORLD))
        await admin.events(
            [
                Profile(uid="bob", name="Bob", email="bob@example.com", phone="+43660111222", loyalty="gold"),
                Consent(uid="bob", scope="email", granted=True),
            ]
        )
        code = await a_whole_life(server, admin, till, sms, mail, log)

        async def buried() -> bool:
            lengths = [await redis.xlen(f"nearcast:{{{partition}}}:dead-letters") for partition in range(PARTITIONS)]
            return sum(lengths) == 3

        await eventually(buried)
        await admin.set_consent(UID, "all", granted=False)
        assert partition_of(UID, PARTITIONS) != partition_of(f"anon:{VISITOR}", PARTITIONS)
        kinds = {key.decode().split(":")[-2 if b"customer:" in key else -1] for key in await traces(redis)}
        assert len(kinds) > 8, kinds
        assert len(await decisions(server, UID)) >= 3

        await admin.erase(UID)

        async def complete() -> bool:
            return await erasure(server, UID) == "complete"

        await eventually(complete, within_s=40)
        assert await traces(redis) == {}
        with pytest.raises(Refused, match="unknown_coupon"):
            await till.validate(code)
        with pytest.raises(Refused, match="unknown_customer"):
            await admin.customer(UID)
        assert (await admin.customer("bob"))["customer"]["email"] == "bob@example.com"
    await log.stop()
    text = (server.folder / "nearcast.log").read_bytes()
    assert [trace for trace in TRACES if trace in text] == []
    assert b"Traceback" not in text
