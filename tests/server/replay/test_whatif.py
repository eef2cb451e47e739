"""Recordings written by hand, replayed: time passes as the records say, and what differs is what must."""

import json
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from nearcast.decisions import Reason
from nearcast.errors import InputError
from nearcast.events import TOPIC_OF, Cart, Consent, Event, Identify, Location, Profile, Receipt, Stitch, Timer, encode
from nearcast.ids import CustomerId, DecisionId, EventId, PromotionId, Sku, decision_id, message_id, partition_of
from nearcast.world import Budget, Experiment, Promotion, Words
from offers.worldfile import WorldFile
from server import settings as settings_module
from server.replay.player import Key, Made
from server.replay.recording import Recording
from server.replay.report import Report, Side, as_json, as_text, compare
from server.replay.whatif import read_rules, what_if
from server.world import build
from tests.server.town import LNG, WORLD, metres_north

#: A Monday, 10:00 UTC.
NOON = 1_790_000_000_000
HOUR = 3_600_000
DAY = 24 * HOUR
REMIND = Promotion(id="remind", name="Cart", trigger="cart_abandoned", words={"en": Words(title="Still there")})
TOWN = msgspec.structs.replace(WORLD, promotions=[*WORLD.promotions, REMIND])


@pytest.fixture(autouse=True)
def _settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing is quiet, and there is no installation anywhere near."""
    monkeypatch.setenv("NEARCAST_QUIET_HOURS", "")
    monkeypatch.setenv("NEARCAST_DATA_DIR", str(tmp_path / "no-data"))


def recording(folder: Path, events: Iterable[tuple[int, Event]], extra: Sequence[dict[str, Any]] = ()) -> Recording:
    """Events by time of arrival, as the lines of a file, with the town's world."""
    lines: list[dict[str, Any]] = [{"nearcast_recording": 1, "log": "streams", "partitions": 4}]
    lines.append({"world": msgspec.to_builtins(TOWN)})
    count = 0
    for count, (arrived_ms, event) in enumerate(events, 1):
        lines.append(
            {
                "topic": TOPIC_OF[type(event)],
                "partition": partition_of(event.customer, 4),
                "position": f"{arrived_ms}-{count}",
                "key": event.customer,
                "value": encode(event).decode(),
                "arrived_ms": arrived_ms,
            }
        )
    lines += [*extra, {"end": {"records": count}}]
    file = folder / f"recording-{len(list(folder.iterdir()))}.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return Recording(file)


def rules(folder: Path, *promotions: Promotion) -> list[Path]:
    file = folder / f"rules-{len(list(folder.iterdir()))}.json"
    file.write_bytes(msgspec.json.encode(WorldFile(promotions=list(promotions))))
    return [file]


def consent(at_ms: int, uid: str = "ann") -> tuple[int, Event]:
    return at_ms, Consent(id=f"consent-{uid}-{at_ms}", uid=uid, ts=at_ms, scope="sms", granted=True)


def cart(at_ms: int, uid: str | None = "ann", **fields: Any) -> tuple[int, Event]:
    event = {"id": f"cart-{uid}-{at_ms}", "uid": uid, "ts": at_ms, "action": "add", "sku": "beans"} | fields
    return at_ms, Cart(**event)


def fix(at_ms: int, metres: float, uid: str = "ann") -> tuple[int, Event]:
    lat = metres_north(metres)
    return at_ms, Location(id=f"fix-{uid}-{at_ms}", uid=uid, ts=at_ms, lat=lat, lng=LNG, accuracy_m=5.0)


async def replayed(of: Recording, *, samples: int = 100, **options: Any) -> Report:
    return await what_if(of, settings_module.load(), samples=samples, **options)


async def test_timers_come_due_in_virtual_time(tmp_path: Path) -> None:
    """A cart left on Monday is abandoned half an hour later, though the next record is from Tuesday.

    By then the reminder of Monday is no longer in the way: the cap of a day is counted in virtual time, too.
    """
    day = recording(tmp_path, [consent(NOON), cart(NOON), cart(NOON + DAY), fix(NOON + DAY + 2 * HOUR, 500)])
    report = await replayed(day, rules=rules(tmp_path, *WORLD.promotions))
    assert [(each.at_ms, each.before, each.after) for each in report.samples] == [
        (NOON + HOUR // 2, "offer remind", "-"),
        (NOON + DAY + HOUR // 2, "offer remind", "-"),
    ]
    assert (report.before.outcomes, report.only_before, report.only_after) == ({"offer": 2}, 2, 0)


async def test_what_other_values_would_change(tmp_path: Path) -> None:
    """A reminder that costs more than it can bring, one that everybody is held out of, one that half the people see:
    the report names the reason, and what the model expects of either side."""
    day = recording(tmp_path, [consent(NOON), cart(NOON), fix(NOON + HOUR, 500)])
    for fields, reason in (
        ({"cost_cents": 100}, Reason.NOT_WORTH_IT),
        ({"holdout": 1.0}, Reason.HOLDOUT),
        ({"experiment": Experiment(name="words", starts=0.0, ends=1e-9)}, Reason.OTHER_ARM),
    ):
        changed = msgspec.structs.replace(REMIND, **fields)
        report = await replayed(day, rules=rules(tmp_path, *WORLD.promotions, changed))
        assert [(each.before, each.after) for each in report.samples] == [("offer remind", f"nothing ({reason.value})")]
        assert report.after is not None
        assert report.before.expected_cents > report.after.expected_cents == 0
        assert f"{report.before.expected_cents:.2f}" in as_text(report)


async def test_a_replay_meets_the_same_chance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the decisions left to chance: another replay, and one with rules that have nothing to do with it, come
    to the same; and some of the offers that are made without exploration are not made with it."""
    people = [f"shopper {number}" for number in range(24)]
    events = [event for who in people for event in (consent(NOON, who), cart(NOON, who))]
    day = recording(tmp_path, [*events, fix(NOON + HOUR, 500)])
    monkeypatch.setenv("NEARCAST_EXPLORATION", "0.5")
    elsewhere = msgspec.structs.replace(REMIND, id="elsewhere", trigger="qr_scan")
    report = await replayed(day, rules=rules(tmp_path, *TOWN.promotions, elsewhere))
    assert report.after is not None
    assert (report.differences, report.same) == (0, 24)
    assert report.before.rules_version != report.after.rules_version
    assert report.before.outcomes.keys() == {"offer", "nothing"}


async def test_channels_are_ordered_as_the_engine_orders_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the learned order, a replay says by which channel an offer would go first; another one is a difference.

    Ann can have both. Nobody knows her, so the model says what is usual: the app before the SMS that is named first.
    Against a live decision for that SMS, only this is different. With the promotion's own order nothing is said of it.
    """
    in_the_app = NOON, Consent(id="consent-app", uid="ann", ts=NOON, scope="websocket", granted=True)
    due_ms = NOON + HOUR // 2
    recorded = Timer(id="t", uid="ann", ts=due_ms, kind="cart_abandoned", due_ms=due_ms)
    moment = {"event": "t", "customer": "ann", "trigger": "cart_abandoned", "at_ms": due_ms, "subject": str(due_ms)}
    decision = {
        "id": "d" * 32,
        "moment": moment,
        "outcome": "offer",
        "at_ms": due_ms,
        "deadline_ms": due_ms + 300_000,
        "candidates": [],
        "rules_version": "r",
        "model_version": "m",
        "promotion": "remind",
        "channels": {"sms": 0.4, "websocket": 0.3},
    }
    both = msgspec.structs.replace(REMIND, channels=["sms", "websocket"])
    world = tmp_path / "both.json"
    world.write_bytes(msgspec.json.encode(msgspec.structs.replace(TOWN, promotions=[both])))
    day = recording(tmp_path, [consent(NOON), in_the_app, cart(NOON), (due_ms, recorded)], [{"decision": decision}])
    for order, after in (("promotion", "offer remind"), ("learned", "offer remind by websocket")):
        monkeypatch.setenv("NEARCAST_CHANNEL_ORDER", order)
        report = await replayed(day, world=[world])
        assert [(each.before, each.after) for each in report.samples] == [("offer remind by sms", after)]


async def test_timers_that_are_not_waited_for(tmp_path: Path) -> None:
    """A recorded timer of a cart that has changed since, or was never there, fires nothing; one that is waited for is
    where the recording has it, and fires once."""
    half = HOUR // 2

    def timer(uid: str, due_ms: int) -> tuple[int, Event]:
        return due_ms + 180, Timer(id=f"t-{uid}-{due_ms}", uid=uid, ts=due_ms, kind="cart_abandoned", due_ms=due_ms)

    day = recording(
        tmp_path,
        [
            *(consent(NOON, uid) for uid in ("ann", "bob")),
            cart(NOON),
            cart(NOON + 60_000),
            timer("ann", NOON + half),
            timer("bob", NOON + half),
            timer("ann", NOON + half + 60_000),
            fix(NOON + 2 * HOUR, 500),
        ],
    )
    report = await replayed(day, rules=rules(tmp_path, *WORLD.promotions))
    assert [(each.customer, each.at_ms, each.event) for each in report.samples] == [
        ("ann", NOON + half + 60_000, f"t-ann-{NOON + half + 60_000}")
    ]


async def test_timers_that_came_late(tmp_path: Path) -> None:
    """The live engine was away when they were due: Ann changed her cart meanwhile and is not reminded of the old one,
    Bob is, and his reminder is where it was. Cleo's timer came before the run waits for it, so she gets one of its own.
    """
    due_ms = NOON + HOUR // 2

    def timer(at_ms: int, uid: str, due_ms: int) -> tuple[int, Event]:
        return at_ms, Timer(id=f"t-{uid}-{due_ms}", uid=uid, ts=due_ms, kind="cart_abandoned", due_ms=due_ms)

    day = recording(
        tmp_path,
        [
            *(consent(NOON, uid) for uid in ("ann", "bob", "cleo")),
            cart(NOON),
            cart(NOON, "bob"),
            cart(due_ms + 5_000),
            fix(due_ms + 5_000, 500),
            timer(due_ms + 10_000, "ann", due_ms),
            timer(due_ms + 10_000, "bob", due_ms),
            timer(due_ms + 10_001, "cleo", due_ms),
            (due_ms + 10_002, cart(NOON, "cleo")[1]),
            fix(due_ms + 20_000, 500),
        ],
    )
    report = await replayed(day, rules=rules(tmp_path, *WORLD.promotions))
    assert [(each.customer, each.at_ms, each.before) for each in report.samples] == [
        ("bob", due_ms, "offer remind"),
        ("cleo", due_ms, "offer remind"),
    ]
    assert [each.event == f"t-{each.customer}-{due_ms}" for each in report.samples] == [True, False]


async def test_a_timer_that_is_still_to_come(tmp_path: Path) -> None:
    """A timer that the recording lacks is fired when it is overdue; another that is due by then waits for its own."""
    due_ms = NOON + 900 + HOUR // 2
    recorded = Timer(id="t", uid="bob", ts=due_ms, kind="cart_abandoned", due_ms=due_ms)
    day = recording(
        tmp_path,
        [
            consent(NOON),
            consent(NOON, "bob"),
            cart(NOON),
            cart(NOON + 900, "bob"),
            (due_ms + 180, recorded),
            fix(NOON + HOUR, 500),
        ],
    )
    report = await replayed(day, rules=rules(tmp_path, *WORLD.promotions))
    assert [(each.customer, each.event == "t") for each in report.samples] == [("ann", False), ("bob", True)]


async def test_a_visitor_signs_in(tmp_path: Path) -> None:
    """What the visitor had in the cart is with the customer for the next record; the recorded stitch adds nothing."""
    visitor = {"uid": None, "anonymous_id": "d7"}
    empty_handed = Identify(id="j", uid="bob", anonymous_id="d8", ts=NOON + 2)
    recorded = Stitch(id="s", uid="bob", ts=NOON + 2, cart={Sku("beans"): (1, None)})
    day = recording(
        tmp_path,
        [
            consent(NOON),
            consent(NOON, "bob"),
            cart(NOON + 1, **visitor),
            (NOON + 2, Identify(id="i", uid="ann", anonymous_id="d7", ts=NOON + 2)),
            (NOON + 2, empty_handed),
            (NOON + 2, recorded),
            fix(NOON + 3, 80),
            fix(NOON + 3, 80, "bob"),
        ],
    )
    report = await replayed(day, rules=rules(tmp_path, REMIND))
    assert [(each.customer, each.at_ms, each.before) for each in report.samples] == [
        ("ann", NOON + 3, "offer abandoned for beans")
    ]


async def test_receipts_follow_the_decision(tmp_path: Path) -> None:
    """A recorded receipt counts where the same was decided, whatever its id was; where not, it is dropped and counted.

    The offer never reached Ann, so she gets it again an hour later; Bob got his.
    """
    recorded = DecisionId("d" * 32)
    moment = {
        "event": f"fix-ann-{NOON + 2}",
        "customer": "ann",
        "trigger": "walk_past",
        "at_ms": NOON + 2,
        "subject": "near",
    }
    decision = {
        "id": recorded,
        "moment": moment,
        "outcome": "offer",
        "at_ms": NOON + 2,
        "deadline_ms": NOON + 300_002,
        "candidates": [],
        "rules_version": "of last week",
        "model_version": "m",
        "promotion": "abandoned",
    }

    def receipt(name: str, decided: DecisionId) -> tuple[int, Event]:
        message = message_id(decided, "customer")
        return NOON + 9, Receipt(
            id=name, uid="ann", ts=NOON + 9, message=message, decision=decided, status="failed", channel="sms"
        )

    walks = [
        each for uid in ("ann", "bob") for each in (consent(NOON, uid), cart(NOON + 1, uid), fix(NOON + 2, 80, uid))
    ]
    again = [each for uid in ("ann", "bob") for each in (fix(NOON + 1_000, 500, uid), fix(NOON + 2_000, 80, uid))]
    events = [*walks, receipt("r1", recorded), receipt("r2", DecisionId("e" * 32)), *again]
    day = recording(tmp_path, events, [{"decision": decision}])
    report = await replayed(day)
    assert report.after is not None
    assert (report.after.receipts_kept, report.after.receipts_dropped) == (1, 1)
    new = {(each.customer, each.at_ms): each.after for each in report.samples}
    assert new == {
        ("ann", NOON + 2): "offer abandoned for beans",
        ("ann", NOON + 2_000): "offer abandoned for beans",
        ("bob", NOON + 2): "offer abandoned for beans",
        ("bob", NOON + 2_000): "nothing (capped)",
    }
    # Without the promotion there is no such decision, so there is nothing that the receipt could be about.
    other = await replayed(day, rules=rules(tmp_path, REMIND))
    assert other.after is not None
    assert (other.after.receipts_kept, other.after.receipts_dropped) == (0, 2)


async def test_receipts_of_decisions_that_nobody_wrote_down(tmp_path: Path) -> None:
    """The run with the current rules knows which decision a receipt is about, for the run with the new ones, too.

    Both know therefore that the first offer failed, and make it again; but for their words they are the same rules.
    """
    first_ms = NOON + 2
    moment = (CustomerId("ann"), EventId(f"fix-ann-{first_ms}"), "walk_past", "near", first_ms)
    town = msgspec.json.decode(msgspec.json.encode(TOWN), type=WorldFile)
    decided = decision_id(*moment, build(0, town).catalogue.version)
    failed = Receipt(
        id="r",
        uid="ann",
        ts=NOON + 9,
        message=message_id(decided, "customer"),
        decision=decided,
        status="failed",
        channel="sms",
    )
    day = recording(
        tmp_path,
        [
            consent(NOON),
            cart(NOON + 1),
            fix(first_ms, 80),
            (NOON + 9, failed),
            fix(NOON + 1_000, 500),
            fix(NOON + 2_000, 80),
        ],
    )
    reworded = msgspec.structs.replace(REMIND, words={"en": Words(title="Your cart is waiting")})
    report = await replayed(day, rules=rules(tmp_path, *WORLD.promotions, reworded))
    assert report.after is not None
    assert report.before.rules_version != report.after.rules_version
    assert report.before.outcomes == {"offer": 2}
    assert [(side.receipts_kept, side.receipts_dropped) for side in (report.before, report.after)] == [(1, 0), (1, 0)]
    assert report.differences == 0, report.samples
    # Without the promotion nothing was decided that the receipt could be about.
    other = await replayed(day, rules=rules(tmp_path, REMIND))
    assert other.after is not None
    assert (other.after.receipts_kept, other.after.receipts_dropped) == (0, 1)


def shopping(seed: int) -> list[tuple[int, Event]]:
    """Two hours of a dozen customers, some of them visitors at first."""
    rng = random.Random(seed)
    at_ms = NOON
    events: list[tuple[int, Event]] = []
    for step in range(200):
        at_ms += rng.choice((0, 0, 1, 40, 900, 30_000, 60_000))
        uid = f"c{rng.randrange(12)}"
        kind = rng.random()
        if kind < 0.1:
            event: Event = Consent(id=f"e{step}", uid=uid, ts=at_ms, scope="sms", granted=rng.random() < 0.8)
        elif kind < 0.2:
            event = Profile(id=f"e{step}", uid=uid, ts=at_ms, loyalty=rng.choice(("gold", "")))
        elif kind < 0.4:
            who: dict[str, str] = {"anonymous_id": f"v-{uid}"} if rng.random() < 0.5 else {"uid": uid}
            event = Cart(id=f"e{step}", ts=at_ms, action="add", sku=rng.choice(("beans", "grinder", "gone")), **who)  # type: ignore[arg-type]
        elif kind < 0.45:
            event = Identify(id=f"e{step}", uid=uid, anonymous_id=f"v-{uid}", ts=at_ms)
        else:
            lat = metres_north(rng.choice((0.0, 10.0, 80.0, 80.0, 500.0)))
            event = Location(id=f"e{step}", uid=uid, ts=at_ms, lat=lat, lng=LNG, accuracy_m=1.0)
        events.append((at_ms, event))
    return events


@pytest.mark.parametrize("seed", range(2))
async def test_the_same_every_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """However the log is cut into batches, two runs of the same rules don't differ, and a report is the same bytes."""
    day = recording(tmp_path, shopping(seed))
    same = await replayed(day, rules=rules(tmp_path, *TOWN.promotions))
    assert same.differences == 0
    assert same.same > 10
    assert len(same.before.outcomes) >= 2
    fewer = rules(tmp_path, *(each for each in TOWN.promotions if each.id != "abandoned"))
    reports = []
    for batch_events in ("1", "1000"):
        monkeypatch.setenv("NEARCAST_BATCH_EVENTS", batch_events)
        reports.append(await replayed(day, rules=fewer))
    assert reports[0].differences > 0
    assert [as_json(report) for report in reports] == [as_json(reports[0])] * 2
    assert [as_text(report) for report in reports] == [as_text(reports[0])] * 2


async def test_in_what_order_records_of_one_moment_were_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are seen as an engine sees them: what changes a customer before where they are, however batches are cut."""
    monkeypatch.setenv("NEARCAST_BATCH_EVENTS", "1")
    day = recording(tmp_path, [consent(NOON), fix(NOON + 1, 80), cart(NOON + 1), fix(NOON + 2, 500)])
    report = await replayed(day, rules=rules(tmp_path, REMIND))
    assert [(each.at_ms, each.before) for each in report.samples] == [(NOON + 1, "offer abandoned for beans")]


def made(name: str, promotion: str | None = None, reason: Reason | None = None) -> Made:
    return Made(
        DecisionId(name),
        "offer" if promotion else "nothing",
        PromotionId(promotion) if promotion else None,
        None,
        reason,
    )


def test_what_differs() -> None:
    """Gone, new, another winner, another reason; and what the live store had forgotten is no difference."""
    keys = [Key(CustomerId("ann"), EventId(f"e{n}"), "enter", "door", n) for n in range(6)]
    before = {
        keys[1]: made("1", "tea"),
        keys[2]: made("2", "tea"),
        keys[3]: made("3", reason=Reason.CAPPED),
        keys[4]: made("4", "tea"),
    }
    after = {
        keys[0]: made("0", "tea"),
        keys[2]: made("x", "tea"),
        keys[3]: made("3", reason=Reason.OUT_OF_STOCK),
        keys[4]: made("4", "coffee"),
        keys[5]: made("5", "coffee"),
    }
    side = Side(name="live", decisions=4, outcomes={})
    bare = Report(records=1, first_ms=0, last_ms=0, before=side, after=side)
    report = compare(bare, before, after, 10, {CustomerId("ann"): 1})
    assert (report.same, report.changed, report.only_before, report.only_after) == (1, 2, 1, 1)
    assert [(each.event, each.before, each.after) for each in report.samples] == [
        ("e1", "offer tea", "-"),
        ("e3", "nothing (capped)", "nothing (out_of_stock)"),
        ("e4", "offer tea", "offer coffee"),
        ("e5", "-", "offer coffee"),
    ]
    assert {each.promotion: (each.before, each.after) for each in report.promotions} == {
        "tea": (3, 1),
        "coffee": (0, 2),
    }
    assert (report.moved, report.new, report.gone) == (1, 1, 1)
    assert [(each.reason, each.before, each.after) for each in report.reasons] == [
        ("capped", 1, 0),
        ("out_of_stock", 0, 1),
    ]
    assert len(compare(bare, before, after, 2).samples) == 2
    assert compare(bare, before, after, 10).only_after == 2


async def test_nothing_to_compare_with(tmp_path: Path) -> None:
    """Of records alone nothing is known but themselves: a summary. Without any world there is not even that."""
    town = tmp_path / "town.json"
    town.write_bytes(msgspec.json.encode(TOWN))
    day = recording(tmp_path, [consent(NOON), cart(NOON), fix(NOON + HOUR, 80)])
    bare = tmp_path / "bare.jsonl"
    bare.write_text("".join(line for line in day.file.read_text().splitlines(keepends=True) if '"topic"' in line))
    report = await replayed(Recording(bare), world=[town])
    assert (report.after, report.before.outcomes) == (None, {"offer": 2})
    assert "Nothing to compare with" in as_text(report)
    with pytest.raises(InputError, match="--world"):
        await replayed(Recording(bare))


async def test_rules_that_cannot_be_used(tmp_path: Path) -> None:
    """Without a promotion, or with one that names what isn't there; a folder is all the world files in it."""
    day = recording(tmp_path, [consent(NOON)])
    none = tmp_path / "none.json"
    none.write_bytes(msgspec.json.encode(WorldFile()))
    with pytest.raises(InputError, match="no promotion"):
        await replayed(day, rules=[none])
    lost = msgspec.structs.replace(REMIND, what=msgspec.structs.replace(REMIND.what, skus=["never"]))
    with pytest.raises(InputError, match="'never', which does not exist"):
        await replayed(day, rules=rules(tmp_path, lost))
    garbled = msgspec.structs.replace(REMIND, words={"en": Words(title="{{ nothing }}")})
    with pytest.raises(InputError, match="nothing"):
        await replayed(day, rules=rules(tmp_path, garbled))
    folder = tmp_path / "folder"
    folder.mkdir()
    for name, promotion in (("b.json", REMIND), ("a.yaml", WORLD.promotions[0])):
        (folder / name).write_bytes(msgspec.json.encode(WorldFile(promotions=[promotion])))
    (folder / "notes.txt").write_text("not a world file")
    assert [each.id for each in read_rules([folder]).promotions] == ["abandoned", "remind"]


async def test_what_a_budget_would_change(tmp_path: Path) -> None:
    """With a budget of two, two of five carts are reminded of, the others with the reason; both sides of it are told.

    In the replay as live, no more goes out than the budget has.
    """
    people = [f"shopper {number}" for number in range(5)]
    events = [event for who in people for event in (consent(NOON, who), cart(NOON, who))]
    day = recording(tmp_path, [*events, fix(NOON + HOUR, 500)])
    tight = msgspec.structs.replace(REMIND, budgets=[Budget(pieces=2)])
    report = await replayed(day, rules=rules(tmp_path, *WORLD.promotions, tight))
    assert (report.moved, report.new, report.gone) == (0, 0, 3)
    assert [(each.reason, each.before, each.after) for each in report.reasons] == [("budget_exhausted", 0, 3)]
    (remind,) = report.promotions
    assert (remind.before, remind.after) == (5, 2)
    assert remind.expected_cents_before > remind.expected_cents_after > 0
    assert [(each.pieces_before, each.pieces_after) for each in remind.budgets] == [(0, 2)]
    text = as_text(report)
    assert "messages: 0 moved to another promotion, 0 new, 3 gone" in text
    assert "remind     all  0 -> 2" in text
    assert "budget_exhausted  0        3    +3" in text
