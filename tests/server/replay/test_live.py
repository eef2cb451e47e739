"""A live run, recorded and replayed: the same rules decide the same, others differ as they must; nothing is sent."""

import stat
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import pytest
from redis.asyncio import Redis

from nearcast import keys, topics
from nearcast.clock import ManualClock
from nearcast.decisions import Decision
from nearcast.errors import InputError
from nearcast.events import Cart, Consent, Erase, Identify, Location, Profile
from nearcast.ids import CustomerId, DecisionId, EventId, FenceId, PromotionId, Sku, partition_of
from nearcast.moments import Moment
from nearcast.world import Promotion, Who, Words
from offers.worldfile import WorldFile
from server import settings as settings_module
from server.core import open_core
from server.log.history import StreamsHistory
from server.replay.live import Live, Stretch, open_live
from server.replay.player import key_of
from server.replay.recording import Recording
from server.replay.report import Report, as_json
from server.replay.whatif import what_if
from server.state import Commit
from tests.channels.sms_provider import ACCOUNT, TOKEN, SmsProvider
from tests.server.replay.installation import PARTITIONS, Installation, dump, installed
from tests.server.town import LNG, WORLD, metres_north

REMIND = Promotion(id="remind", name="Cart", trigger="cart_abandoned", words={"en": Words(title="Still there")})
#: By SMS only: who has no phone is told nothing, and a receipt says so.
TOWN = msgspec.structs.replace(
    WORLD,
    promotions=[msgspec.structs.replace(promotion, channels=["sms"]) for promotion in (*WORLD.promotions, REMIND)],
)


_last_ms = 0


def now_ms() -> int:
    """The time, but never the same twice: a fix that is not newer than the last one says nothing."""
    global _last_ms
    _last_ms = max(_last_ms + 1, time.time_ns() // 1_000_000)
    return _last_ms


def fix(uid: str, metres: float) -> Location:
    return Location(uid=uid, ts=now_ms(), lat=metres_north(metres), lng=LNG, accuracy_m=5.0)


def consent(uid: str) -> Consent:
    return Consent(uid=uid, ts=now_ms() - 1, scope="sms", granted=True)


def cart(uid: str | None = None, anonymous: str | None = None) -> Cart:
    return Cart(uid=uid, anonymous_id=anonymous, ts=now_ms(), action="add", sku="beans", price_cents=1_299)


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch) -> Iterator[SmsProvider]:
    """Who delivers the SMS of the installation, and knows how many there were."""
    provider = SmsProvider()
    for name, value in {"URL": provider.url, "ACCOUNT": ACCOUNT, "AUTH_TOKEN": TOKEN, "FROM": "+4315550000"}.items():
        monkeypatch.setenv(f"NEARCAST_SMS_{name}", value)
    yield provider
    provider.close()


async def a_day(town: Installation) -> None:
    """Of three customers. Ann leaves her cart and walks past twice; Bob signs in with a full cart; Cleo is gold."""
    await town.send(consent("ann"), consent("bob"), consent("cleo"))
    await town.send(
        Profile(uid="bob", ts=now_ms(), phone="+4366011111"),
        Profile(uid="cleo", ts=now_ms(), phone="+4366022222", loyalty="gold"),
    )
    await town.send(cart("ann"), cart("cleo"), cart(anonymous="d7"))
    await town.decided("ann", "cart_abandoned")
    await town.receipt("ann")
    # No id: it gets one from its place in the log, which a replay must not change.
    walk = f'{{"uid":"ann","ts":{now_ms()},"lat":{metres_north(80)},"lng":{LNG},"accuracy_m":5}}'
    await town.send_raw(topics.LOCATIONS, "ann", walk.encode())
    await town.send_raw(topics.LOCATIONS, "ann", b"\xff\xfe no JSON")
    await town.receipt("ann")
    # Nobody got the first offer, so it doesn't count: without its receipt the second one would be refused.
    await town.send(fix("ann", 500), fix("ann", 80))
    await town.send(Identify(uid="bob", anonymous_id="d7", ts=now_ms()))
    await town.decided("bob", "cart_abandoned")
    await town.send(fix("bob", 80), fix("cleo", 80), fix("cleo", 5), fix("cleo", 500))
    await town.send(fix("bob", 500), fix("bob", 80))
    await town.receipt("ann")
    await town.receipt("bob")
    await town.receipt("cleo")
    await town.settled()


def with_promotion(town: WorldFile, name: str, **fields: object) -> WorldFile:
    return msgspec.structs.replace(
        town,
        promotions=[msgspec.structs.replace(each, **fields) if each.id == name else each for each in town.promotions],
    )


async def replayed(file: Path, tmp_path: Path, rules: WorldFile | None = None) -> Report:
    files: Sequence[Path] = ()
    if rules is not None:
        written = tmp_path / f"{uuid.uuid4().hex}.json"
        written.write_bytes(msgspec.json.encode(WorldFile(promotions=rules.promotions)))
        files = [written]
    return await what_if(Recording(file), settings_module.load(), rules=files, samples=1_000)


async def test_a_live_run_again(log_kind: str, redis: Redis, provider: SmsProvider, tmp_path: Path) -> None:
    """Timers, a sign-in, receipts, an event without id and a dead letter: the same rules decide the same once more.

    With gold members only, exactly the others' reminders at the door are refused. The store is as it was.
    """
    async with installed(TOWN) as town:
        await a_day(town)
        live = {
            key_of(decision): decision
            for customer in ("ann", "bob", "cleo", "anon:d7")
            for decision in await town.core.state.decisions(customer, 100)  # type: ignore[arg-type]
        }
    made = {(key.customer, key.trigger, made.promotion or made.reason) for key, made in live.items()}
    assert made >= {
        ("ann", "cart_abandoned", "remind"),
        ("ann", "walk_past", "abandoned"),
        ("bob", "walk_past", "capped"),
        ("bob", "cart_abandoned", "remind"),
        ("bob", "walk_past", "abandoned"),
        ("cleo", "walk_past", "abandoned"),
        ("cleo", "enter", "welcome"),
    }
    before, sent = await dump(redis), list(provider.keys)
    assert sent
    file = tmp_path / "day.jsonl.gz"
    async with open_live() as reading:
        records = await reading.record(file, Stretch(), lambda _: None)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600

    same = await replayed(file, tmp_path)
    assert same.records == records
    assert same.after is not None
    assert (same.before.name, same.before.decisions, same.same) == ("live", len(live), len(live))
    assert same.differences == 0, same.samples
    assert same.after.receipts_kept > 0
    assert same.after.receipts_dropped == 0
    assert same.after.dead_letters == {"malformed_event": 1}

    gold = with_promotion(TOWN, "abandoned", who=Who(in_cart=True, loyalty=["gold"]))
    other = await replayed(file, tmp_path, gold)
    expected = {
        (key.customer, key.at_ms) for key in live if key.trigger == "walk_past" and key.customer in ("ann", "bob")
    }
    assert {(each.customer, each.at_ms) for each in other.samples} == expected
    assert {each.after for each in other.samples} == {"nothing (not_in_audience)"}
    assert (other.changed, other.only_before, other.only_after) == (len(expected), 0, 0)
    assert {each.promotion: (each.before, each.after) for each in other.promotions}["abandoned"] == (4, 1)
    assert other.after is not None
    assert other.after.receipts_dropped > 0
    assert as_json(other) == as_json(await replayed(file, tmp_path, gold))
    # A stretch is what arrived within it.
    middle_ms = (recording := Recording(file)).first_ms + 1_000
    parts = []
    for name, stretch in (("early", Stretch(until_ms=middle_ms)), ("late", Stretch(since_ms=middle_ms))):
        async with open_live() as reading:
            await reading.record(tmp_path / name, stretch, lambda _: None)
        parts.append(Recording(tmp_path / name))
    assert parts[0].last_ms < middle_ms <= parts[1].first_ms
    everything = [record for part in parts for record in part.records()]
    assert sorted(everything, key=str) == sorted(recording.records(), key=str)
    assert (await dump(redis), provider.keys) == (before, sent)


async def test_what_the_engine_has_not_seen(log_kind: str, redis: Redis, tmp_path: Path) -> None:
    """A recording ends where the engine does, unless asked for more; a log that nobody worked on is said to be one."""
    async with open_core(settings_module.load()) as core:
        await core.intake.append([consent("ann")])
    async with open_live() as reading:
        with pytest.raises(InputError, match="--unprocessed"):
            await reading.record(tmp_path / "none", Stretch(), lambda _: None)
    async with installed(TOWN) as town:
        await town.send(consent("bob"))
    async with open_core(settings_module.load()) as core:
        await core.intake.append([fix("ann", 80), fix("bob", 80)])
    counts = []
    for name, stretch in (("seen", Stretch()), ("all", Stretch(unprocessed=True))):
        async with open_live() as reading:
            counts.append(await reading.record(tmp_path / name, stretch, lambda _: None))
    assert counts == [2, 4]


async def test_what_the_store_has_dropped(
    streams: str, redis: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only decisions about the recorded customers are read. What was decided before those that the store still has,
    because they were too many, expired or were erased, is no difference to a replay, which decides it again.
    """
    people = ("ann", "bob", "cleo", "dora", "finn")
    fixes = {uid: fix(uid, 80) for uid in people}

    def decided(uid: str, at_ms: int, event: str) -> Decision:
        moment = Moment(
            event=EventId(event), customer=CustomerId(uid), trigger="walk_past", at_ms=at_ms, subject=FenceId("near")
        )
        return Decision(
            id=DecisionId(f"{uid}-{at_ms}"),
            moment=moment,
            outcome="offer",
            at_ms=at_ms,
            deadline_ms=at_ms,
            candidates=[],
            rules_version="r",
            model_version="m",
            promotion=PromotionId("abandoned"),
            sku=Sku("beans"),
        )

    async with open_core(settings_module.load()) as core:
        await core.world.put(TOWN)
        for uid, where in fixes.items():
            where.id = f"fix-{uid}"
            await core.intake.append([consent(uid), cart(uid), where])
        await core.intake.append([Erase(uid="finn", ts=now_ms())])
        for uid, where in fixes.items():
            newer = {"ann": 100, "dora": 1, "finn": 0}.get(uid, 0)
            about = [decided(uid, where.ts, f"fix-{uid}")]
            about += [decided(uid, where.ts + 1 + n, f"another-{n}") for n in range(newer)]
            partition = core.state.partition(CustomerId(uid))
            owner = await core.state.take(partition)
            commit = Commit(partition=partition, epoch=owner.epoch, decisions=[] if uid == "finn" else about)
            await core.state.commit([core.state.encode(commit)])
        gone = keys.decision(core.state.partition(CustomerId("dora")), f"dora-{fixes['dora'].ts}")
        assert await redis.delete(gone) == 1
        await redis.set(keys.decision(0, "of somebody else"), b"which is damaged")

    clock = ManualClock(now_ms())
    history = StreamsHistory(redis, PARTITIONS)

    async def recorded(name: str) -> Recording:
        live = Live(redis, history, settings_module.load(), clock)
        await live.record(tmp_path / name, Stretch(unprocessed=True), lambda _: None)
        return Recording(tmp_path / name)

    day = await recorded("day")
    erased_ms = max(record.arrived_ms for record in day.records() if record.key == "finn")
    assert day.recorded is not None
    assert [decision.moment.event for decision in day.recorded.decisions] == ["fix-bob", "fix-cleo"]
    month_ms = clock.now_ms() - 30 * 86_400_000
    assert day.recorded.kept_from == {
        "ann": fixes["ann"].ts + 2,
        "bob": month_ms,
        "cleo": month_ms,
        "dora": fixes["dora"].ts + 2,
        "finn": erased_ms,
    }
    with monkeypatch.context() as one_by_one:
        one_by_one.setattr("server.replay.live._CUSTOMERS_AT_ONCE", 1)
        assert (await recorded("again")).recorded == day.recorded
    report = await replayed(day.file, tmp_path)
    assert (report.same, report.differences) == (2, 0), report.samples
    assert report.after is not None
    # All but Finn's, which may go in the batch that makes it.
    assert report.after.decisions >= len(people) - 1

    # Cleo's expire.
    clock.advance(31 * 86_400_000)
    partition = partition_of(CustomerId("cleo"), PARTITIONS)
    await redis.delete(
        keys.decision(partition, f"cleo-{fixes['cleo'].ts}"), keys.decisions_of(partition, CustomerId("cleo"))
    )
    later = await recorded("later")
    assert later.recorded is not None
    assert set(later.recorded.kept_from.values()) == {clock.now_ms() - 30 * 86_400_000}
    report = await replayed(later.file, tmp_path)
    assert (report.same, report.differences) == (1, 0), report.samples
