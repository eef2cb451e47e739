"""Dead letters from the command line, on a real store and through a real engine."""

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import click.testing
import msgspec
import pytest
from redis.asyncio import Redis

from nearcast import keys, topics
from nearcast.errors import Unavailable
from nearcast.events import Cart, Event, Profile, decode
from nearcast.ids import partition_of
from server.cli import main
from server.dead_letters import DeadLetters, Letter, LetterId, Wanted, entry_of, people_in
from server.log.streams import StreamsLog
from server.outbox import ValkeyOutbox
from server.world import WorldStore
from tests.server.rig import PARTITIONS, Bench, Playback, committed, engine_on, records_of
from tests.server.town import WORLD
from tests.services.valkey import ValkeyProcess

NOW = 1_795_000_000_000
SECRET = "a-secret-of-the-tests-with-more-than-32-bytes"
ANN = partition_of("ann", PARTITIONS)
_BURIED_MS = itertools.count(NOW)


class Answer(msgspec.Struct):
    """What a command said."""

    code: int
    out: str
    err: str


class Shell:
    """`nearcast dead-letters ...` on the test's store."""

    def __init__(self, url: str, **more: str) -> None:
        self.environment = {
            "NEARCAST_REDIS_URL": url,
            "NEARCAST_PARTITIONS": str(PARTITIONS),
            "NEARCAST_API_KEYS": '{"admin": "k"}',
            **{f"NEARCAST_{name}_SECRET": SECRET for name in ("TOKEN", "COUPON", "LINK")},
            **more,
        }

    async def __call__(self, *arguments: str) -> Answer:
        runner = click.testing.CliRunner()
        # In a thread: the command has an event loop of its own.
        result = await asyncio.to_thread(runner.invoke, main, ["dead-letters", *arguments], env=self.environment)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
        return Answer(result.exit_code, result.stdout, result.stderr)


@pytest.fixture
def shell(redis: Redis, valkey_url: str) -> Shell:
    """The command line, on an empty store."""
    return Shell(valkey_url)


@pytest.fixture
async def log(redis: Redis, valkey_url: str) -> AsyncIterator[StreamsLog]:
    """The log of that store."""
    log = StreamsLog(valkey_url, PARTITIONS)
    await log.start()
    yield log
    await log.stop()


async def bury(redis: Redis, value: bytes, **fields: str) -> str:
    """Put a dead letter into a partition of the test's choice; its id."""
    partition = int(fields.pop("partition", "0"))
    letter: dict[str | bytes, str | bytes] = {
        "reason": "malformed_event",
        "detail": "no JSON",
        "topic": topics.LOCATIONS,
        "position": "7-0",
        "key": "ann",
        "arrived_ms": str(NOW),
        "value": value,
        **fields,
    }
    # A millisecond apart, so that it is plain which is the oldest.
    entry = f"{next(_BURIED_MS)}-0"
    await redis.xadd(keys.dead_letters(partition), letter, id=entry)  # type: ignore[arg-type]
    return f"{partition}:{entry}"


async def records(redis: Redis, topic: str) -> list[tuple[int, bytes, bytes]]:
    """What is in the log: partition, key, value."""
    return [
        (partition, fields[b"k"], fields[b"v"])
        for partition in range(PARTITIONS)
        for _, fields in await redis.xrange(keys.log_stream(topic, partition))
    ]


async def test_list(redis: Redis, shell: Shell) -> None:
    """Counts by reason, then the oldest; filters, limit, and JSON for programs. The customer's key is shortened."""
    first = await bury(redis, b"{", partition="2")
    await bury(redis, b"{", key="k" * 100)
    other = await bury(redis, b"{}", reason="wrong_partition", topic=topics.CARTS, partition="1")
    answer = await shell("list")
    assert answer.code == 0
    lines = answer.out.splitlines()
    assert [line.split() for line in lines[:2]] == [["2", "malformed_event"], ["1", "wrong_partition"]]
    assert first in lines[4]
    assert "k" * 21 + "..." in answer.out
    assert "k" * 30 not in answer.out
    answer = await shell("list", "--reason", "wrong_partition", "--json")
    found = json.loads(answer.out)
    assert found["counts"] == {"wrong_partition": 1}
    assert [letter["id"] for letter in found["letters"]] == [other]
    assert found["letters"][0]["arrived_ms"] == NOW
    for options, ids in (
        (("--topic", topics.CARTS), [other]),
        (("--partition", "2"), [first]),
        (("--limit", "1"), [first]),
        (("--reason", "malformed_event", "--partition", "1"), []),
    ):
        assert [letter["id"] for letter in json.loads((await shell("list", *options, "--json")).out)["letters"]] == ids
    assert "... and 2 newer" in (await shell("list", "--limit", "1")).out
    assert (await shell("list", "--reason", "x")).out == "no dead letters like that\n"


async def test_show(redis: Redis, shell: Shell) -> None:
    """Everything that is kept, the original bytes as text, or in hexadecimal if they are none."""
    text = await bury(redis, "{ä".encode())
    raw = await bury(redis, b"\xff\x00")
    answer = await shell("show", text)
    for said in (
        text,
        "malformed_event",
        "no JSON",
        topics.LOCATIONS,
        "7-0",
        "ann",
        "2026-11-18",
        "{ä",
        "3 bytes, text",
    ):
        assert said in answer.out
    assert "(2 bytes, hex): ff00" in (await shell("show", raw)).out
    found = json.loads((await shell("show", raw, "--json")).out)
    assert (found["value"], found["value_is"], found["position"]) == ("ff00", "hex", "7-0")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("show", "7"), "'7' is no letter's id"),
        (("show", "x:1-0"), "'x:1-0' is no letter's id"),
        (("show", "0:1"), "'0:1' is no letter's id"),
        (("show", "9:1-0"), "there are partitions 0 to 3 only"),
        (("show", "0:1-0"), "there is no dead letter 0:1-0"),
        (("replay", "0:1-0"), "there is no dead letter 0:1-0"),
        (("replay",), "say which dead letters"),
        (("replay", "--all", "--reason", "x"), "say which dead letters"),
        (("replay", "0:1-0", "--topic", "x"), "say which dead letters"),
        (("replay", "--all"), "there are no dead letters"),
        (("replay", "--reason", "x"), "there are no dead letters like that"),
        (("drop", "--all", "--yes"), "there are no dead letters"),
        (("list", "--partition", "4"), "there are partitions 0 to 3 only"),
    ],
)
async def test_what_can_not_be_done(shell: Shell, arguments: tuple[str, ...], said: str) -> None:
    """One line that says what is wrong, and exit code 2."""
    answer = await shell(*arguments)
    assert (answer.code, answer.out) == (2, "")
    assert answer.err.startswith("nearcast: ")
    assert said in answer.err
    assert answer.err.count("\n") == 1


async def test_nothing_there(shell: Shell) -> None:
    """No dead letters is good news."""
    answer = await shell("list")
    assert (answer.code, answer.out) == (0, "no dead letters\n")


async def test_no_store_no_log(redis: Redis, shell: Shell, tmp_path: Path) -> None:
    """A store or a log that isn't there, or is another's, is said; letters stay."""
    letter = await bury(redis, b"{")
    away = await Shell("redis://127.0.0.1:1/0")("list")
    assert (away.code, away.err) == (2, "nearcast: the state store can't be reached: ConnectionError\n")
    nothing = Shell("", NEARCAST_DATA_DIR=str(tmp_path / "none"))
    nothing.environment.pop("NEARCAST_REDIS_URL")
    answer = await nothing("list")
    assert answer.code == 2
    assert "there is no data in" in answer.err
    shell.environment["NEARCAST_KAFKA"] = "127.0.0.1:1"
    answer = await shell("replay", letter)
    assert answer.code == 2
    assert "Kafka can't be reached" in answer.err
    assert await redis.xlen(keys.dead_letters(0)) == 1
    await redis.set(keys.partitions(), 7)
    answer = await shell("list")
    assert answer.code == 2
    assert "NEARCAST_PARTITIONS is 4" in answer.err


async def test_replay(redis: Redis, shell: Shell) -> None:
    """The original bytes, under the original key, to the original topic; the letter is gone, the others stay."""
    one = await bury(redis, b"\xff\xfe no event", partition=str(ANN))
    await bury(redis, b'{"id":"1","ts":5,"uid":"ann","later":{"a":1.50}}', reason="internal_error", partition=str(ANN))
    stays = await bury(redis, b"{", reason="other")
    answer = await shell("replay", one)
    assert (answer.code, answer.out) == (0, "replayed 1 of 1 dead letters\n")
    answer = await shell("replay", "--reason", "internal_error")
    assert (answer.code, answer.out) == (0, "replayed 1 of 1 dead letters\n")
    assert await records(redis, topics.LOCATIONS) == [
        (ANN, b"ann", b"\xff\xfe no event"),
        (ANN, b"ann", b'{"id":"1","ts":5,"uid":"ann","later":{"a":1.50}}'),
    ]
    assert [letter["id"] for letter in json.loads((await shell("list", "--json")).out)["letters"]] == [stays]


async def test_replay_many(redis: Redis, shell: Shell) -> None:
    """More than are handled at a time: all, each once, oldest first within their partition."""
    async with redis.pipeline(transaction=False) as pipe:
        for number in range(1_234):
            pipe.xadd(keys.dead_letters(1), {"topic": topics.CARTS, "key": "bob", "value": b"%d" % number})
        await pipe.execute()
    answer = await shell("replay", "--all")
    assert (answer.code, answer.out) == (0, "replayed 1234 of 1234 dead letters\n")
    assert [value for _, _, value in await records(redis, topics.CARTS)] == [b"%d" % n for n in range(1_234)]
    assert await redis.xlen(keys.dead_letters(1)) == 0


async def test_a_topic_that_nobody_reads(redis: Redis, shell: Shell) -> None:
    """It is said, and the letter stays, while the others are replayed; it can still be dropped."""
    await bury(redis, b"{", topic="customers.gossip")
    await bury(redis, b"{")
    answer = await shell("replay", "--all")
    assert (answer.code, answer.out) == (2, "replayed 1 of 2 dead letters\n")
    assert "1 are of topics that nearcast does not read; they stay" in answer.err
    answer = await shell("drop", "--topic", "customers.gossip")
    assert (answer.code, answer.out) == (2, "")
    assert "say --yes" in answer.err
    assert await redis.xlen(keys.dead_letters(0)) == 1
    answer = await shell("drop", "--topic", "customers.gossip", "--yes")
    assert (answer.code, answer.out) == (0, "dropped 1 of 1 dead letters\n")
    assert await redis.xlen(keys.dead_letters(0)) == 0


async def test_too_large_for_the_log(redis: Redis, shell: Shell) -> None:
    """It came from a log with other limits: it is said, and the letter stays, while the others are replayed."""
    await bury(redis, b"x" * 1_000_001)
    await bury(redis, b"{")
    answer = await shell("replay", "--all")
    assert (answer.code, answer.out) == (2, "replayed 1 of 2 dead letters\n")
    assert "1 are larger than the log carries; they stay" in answer.err
    assert await redis.xlen(keys.dead_letters(0)) == 1


async def test_a_log_that_does_not_take_them(
    redis: Redis, shell: Shell, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Nothing is removed before the log has it: with the log gone, all letters are there, to be replayed later."""
    await bury(redis, b"{")
    letters = DeadLetters(redis, PARTITIONS)
    valkey = ValkeyProcess(tmp_path_factory.mktemp("log"))
    valkey.start()
    log = StreamsLog(valkey.url, PARTITIONS)
    await log.start()
    await asyncio.to_thread(valkey.kill)
    with pytest.raises(Unavailable):
        await letters.replay([letter async for letter in letters.every(Wanted())], log)
    await log.stop()
    assert await redis.xlen(keys.dead_letters(0)) == 1
    assert (await shell("replay", "--all")).out == "replayed 1 of 1 dead letters\n"


async def test_outbox_entries_go_back_to_the_outbox(redis: Redis, shell: Shell) -> None:
    """What a dispatcher buried, it gets again: once, in its partition."""
    await redis.xadd(keys.outbox(3), {"e": b'{"type":"nonsense"}'})
    outbox = ValkeyOutbox(redis, range(PARTITIONS), "d")
    assert await outbox.read(10, 20) == []
    await outbox.close()
    ((_, letter),) = await redis.xrange(keys.dead_letters(3))
    assert (letter[b"reason"], letter[b"topic"]) == (b"malformed_outbox_entry", b"outbox")
    assert letter[b"arrived_ms"].isdigit()
    assert (await shell("replay", "--topic", "outbox")).out == "replayed 1 of 1 dead letters\n"
    assert [fields for _, fields in await redis.xrange(keys.outbox(3))] == [{b"e": b'{"type":"nonsense"}'}]
    assert await redis.xlen(keys.dead_letters(3)) == 0


async def test_two_people_replay_the_same(redis: Redis, log: StreamsLog) -> None:
    """An outbox entry is replayed by one of them; a log record by both, at worst."""
    shelf = DeadLetters(redis, PARTITIONS)
    await bury(redis, b'{"type":"nonsense"}', topic="outbox")
    letters = [letter async for letter in shelf.every(Wanted())]
    outcomes = await asyncio.gather(*(shelf.replay(letters, log) for _ in range(5)))
    assert sorted(outcome[letters[0].id] for outcome in outcomes) == ["gone"] * 4 + ["replayed"]
    assert await redis.xlen(keys.outbox(0)) == 1


@pytest.mark.parametrize("way", ["undecodable", "wrong partition", "defect"])
async def test_every_letter_says_all(redis: Redis, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    """Reason, what was wrong, where it came from, when it arrived, and the original bytes; whichever way it came."""
    world = WorldStore(redis)
    await world.put(WORLD)
    engine = engine_on(redis, Playback(), world)
    await engine.follow_assignment()
    (record,) = records_of([Profile(id="p", uid="ann", name="Ann")], NOW)
    expected = "internal_error"
    if way == "undecodable":
        record, expected = msgspec.structs.replace(record, value=b"\xff{"), "malformed_event"
    elif way == "wrong partition":
        record = msgspec.structs.replace(record, partition=(record.partition + 1) % PARTITIONS)
        expected = "wrong_partition"
    else:
        monkeypatch.setattr("nearcast.fold._fold_profile", lambda *_: 1 / 0)
    await engine.process([record])
    (letter,) = [letter async for letter in DeadLetters(redis, PARTITIONS).every(Wanted())]
    assert letter == Letter(
        id=LetterId(record.partition, letter.id.entry),
        reason=expected,
        detail=letter.detail,
        topic=topics.ACTIONS,
        position="0",
        key="ann",
        value=record.value,
        arrived_ms=NOW,
    )
    assert letter.detail


async def test_a_defect_that_was_mended(
    redis: Redis, log: StreamsLog, shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a defect cost is made good by a replay; also after a replay that was cut off, nothing counts twice.

    The carts have neither id nor time: they get those that they would have had the first time.
    """
    bench = Bench(redis, log)
    async with bench.running():
        with monkeypatch.context() as defect:
            defect.setattr("nearcast.fold._fold_cart", lambda *_: 1 / 0)
            for _ in range(2):
                await bench.send_raw(topics.CARTS, "ann", b'{"uid":"ann","action":"add","sku":"beans"}')
            await bench.send(Cart(id="named", uid="ann", action="add", sku="grinder"))
            await bench.caught_up()
        shelf = DeadLetters(redis, PARTITIONS)
        letters = [letter async for letter in shelf.every(Wanted(reason="internal_error"))]
        assert len(letters) == 3
        # A replay that dies after the log has the records and before the letters are removed.
        await log.append([entry_of(letter) for letter in letters])
        assert (await shell("replay", "--all")).out == "replayed 3 of 3 dead letters\n"
        await bench.caught_up()
    found = await committed(redis)
    assert found.dead_letters == []
    (ann,) = found.customers.values()
    assert {sku: item.quantity for sku, item in ann.customer.cart.items()} == {"beans": 2, "grinder": 1}
    assert [item.changed_ms for item in ann.customer.cart.values()] == [
        letters[1].arrived_ms,
        letters[2].arrived_ms,
    ]


async def test_a_stray_finds_home(redis: Redis, log: StreamsLog, shell: Shell) -> None:
    """A record that was in another customer's partition goes to its own customer's this time."""
    bench = Bench(redis, log)
    stray = next(f"c{n}" for n in range(99) if partition_of(f"c{n}", PARTITIONS) != ANN)
    async with bench.running():
        await bench.send_raw(topics.CARTS, "ann", f'{{"uid":"{stray}","action":"add","sku":"beans"}}'.encode())
        await bench.caught_up()
        assert (await committed(redis)).customers == {}
        assert (await shell("replay", "--reason", "wrong_partition")).code == 0
        await bench.caught_up()
    found = await committed(redis)
    assert list(found.customers) == [stray]
    assert found.dead_letters == []


@pytest.mark.parametrize(
    "value",
    [b'{"uid":"ann"}', b'{"uid":"ann","ts":0}', b'{"uid":"ann","id":null,"ts":12}', b'{"anonymous_id":"x","uid":null}'],
)
def test_a_nameless_event_keeps_its_name(value: bytes) -> None:
    """The replayed event has the id and the time that the engine gave, or would have given, to the original."""
    value = value[:-1] + b',"action":"clear"}'
    letter = Letter(
        id=LetterId(2, "5-0"),
        reason="internal_error",
        detail="",
        topic=topics.CARTS,
        position="77-1",
        key="k",
        value=value,
        arrived_ms=NOW,
    )
    # The past is what `ts` may be in; 12 is refused by either.
    first: Sequence[Event] = [
        decode(topics.CARTS, sent.replace(b"12", b"1790000000000"), position=position, arrived_ms=arrived_ms)
        for sent, position, arrived_ms in (
            (value, "2:77-1", NOW),
            (entry_of(letter).value, "0:99-0", NOW + 86_400_000),
        )
    ]
    assert first[0] == first[1]


@pytest.mark.parametrize(
    ("value", "customer", "about"),
    [
        (b'{"uid":"ann"}', "ann", True),
        (b'{ "uid" : "ann", "lat": 91', "ann", True),
        (b'{"type":"message","customer":"ann"}', "ann", True),
        (b'{"uid":"anna"}', "ann", False),
        (b'{"uid":"bob","sku":"ann"}', "ann", False),
        (b'{"uid":"a.n"}', "a.n", True),
        (b'{"uid":"ann"}', "a.n", False),
        (b'{"anonymous_id":"x"}', "anon:x", True),
        (b'{"anonymous_id":"x","uid":"ann"}', "ann", True),
        (b'{"uid":"x"}', "anon:x", False),
        (b'{"uid":"J\\u00fcrgen","lat":91', "J\u00fcrgen", True),
        ('{"uid":"J\u00fcrgen"}'.encode(), "J\u00fcrgen", True),
        (b'{"anonymous_id":"shop\\/1"}', "anon:shop/1", True),
        (b'{"customer":"shop\\/1"}', "shop/1", True),
        (b'{"uid":"say \\"ann\\""}', 'say "ann"', True),
        (b'{"sku":"\\"uid\\":\\"ann\\""}', "ann", False),
        (b'{"uid":"a\\x","customer":"ann"}', "ann", True),
        (b'{"type":"message","customer":"anon:x"}', "anon:x", True),
        (b'{"uid":"ann', "ann", False),
        (b"\xff\xfe", "ann", False),
    ],
)
def test_whom_a_letter_is_about(value: bytes, customer: str, about: bool) -> None:
    """Told by the members that name a customer, also in JSON that is broken further on."""
    letter = Letter(id=LetterId(0, "1-0"), reason="", detail="", topic="", position="", key="", value=value)
    assert (customer in people_in(letter)) is about
    assert "by-its-key" in people_in(msgspec.structs.replace(letter, key="by-its-key"))
