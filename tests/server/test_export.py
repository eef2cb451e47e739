"""`nearcast export decisions`, on a real store that a real engine filled."""

import asyncio
import re
import resource
import stat
import uuid
from collections.abc import Sequence
from pathlib import Path

import click.testing
import msgspec
import pandas as pd
import pytest
from redis.asyncio import Redis

from models.features.redeem import REDEEM
from models.training.logged import COLUMNS, LogWriter
from nearcast import keys
from nearcast.clock import ManualClock
from nearcast.decisions import Candidate, Decision, Reason
from nearcast.errors import InputError
from nearcast.events import Cart, Consent, Event, Line, Location, Profile, Purchase, Receipt
from nearcast.ids import CustomerId, DecisionId, EventId, PromotionId, Sku, message_id
from nearcast.moments import Moment
from offers.arms import is_held_out
from offers.policy import Policy
from offers.worldfile import WorldFile
from server.cli import main
from server.coupons import CouponBook, offer_of
from server.log.streams import StreamsLog
from server.state import Commit, StateStore
from tests.server.rig import PARTITIONS, Bench, committed
from tests.server.town import LNG, WORLD, metres_north

NOW = 1_795_000_000_000
SECRET = "a-secret-of-the-tests-with-more-than-32-bytes"
HALF = WorldFile(
    stores=WORLD.stores,
    fences=WORLD.fences,
    products=WORLD.products,
    stock=WORLD.stock,
    promotions=[
        msgspec.structs.replace(each, holdout=0.5) if each.id == "abandoned" else each for each in WORLD.promotions
    ],
)
ABANDONED = next(each for each in HALF.promotions if each.id == "abandoned")
PEOPLE = [CustomerId(f"person-number-{number}") for number in range(40)]
HELD = [name for name in PEOPLE if is_held_out(ABANDONED, name, Policy())]
FREE = [name for name in PEOPLE if name not in HELD]


class Shell:
    """`nearcast export decisions --out ...` on the test's store."""

    def __init__(self, url: str, folder: Path) -> None:
        self.out = folder / "log.parquet"
        self.environment = {
            "NEARCAST_REDIS_URL": url,
            "NEARCAST_PARTITIONS": str(PARTITIONS),
            "NEARCAST_API_KEYS": '{"admin": "k"}',
            **{f"NEARCAST_{name}_SECRET": SECRET for name in ("TOKEN", "COUPON", "LINK")},
        }

    async def __call__(self, *arguments: str) -> click.testing.Result:
        words = ["export", "decisions", "--out", str(self.out), *arguments]
        # In a thread: the command has an event loop of its own.
        result = await asyncio.to_thread(click.testing.CliRunner().invoke, main, words, env=self.environment)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
        return result


@pytest.fixture
def shell(redis: Redis, valkey_url: str, tmp_path: Path) -> Shell:
    """The command, on an empty store."""
    return Shell(valkey_url, tmp_path)


def arrival(customer: CustomerId) -> list[Event]:
    """Somebody with all the personal data there is, who allows offers and left a cart."""
    return [
        Profile(
            id=uuid.uuid4().hex,
            uid=customer,
            ts=NOW,
            name="Ann Archer",
            email="ann.archer@example.org",
            phone="+436601234567",
        ),
        Consent(id=uuid.uuid4().hex, uid=customer, ts=NOW, scope="websocket", granted=True),
        Cart(id=uuid.uuid4().hex, uid=customer, ts=NOW + 1, action="add", sku="beans", price_cents=1_299),
    ]


def passing(customer: CustomerId) -> Location:
    """They come near the store."""
    return Location(id=uuid.uuid4().hex, uid=customer, ts=NOW + 10, lat=metres_north(80), lng=LNG, accuracy_m=5.0)


async def fill(redis: Redis, url: str) -> dict[str, Decision]:
    """Everybody passes by. The first who got the offer redeems its coupon, the second opens it, the third calls a
    redemption off; one who was held out buys something. The decisions by customer.
    """
    log = StreamsLog(url, PARTITIONS)
    await log.start()
    bench = Bench(redis, log)
    async with bench.running(HALF):
        await bench.send(*(event for customer in PEOPLE for event in arrival(customer)))
        await bench.caught_up()
        await bench.send(*(passing(customer) for customer in PEOPLE))
        await bench.caught_up()
        decisions = {str(each.customer): each for each in (await committed(redis)).decisions.values()}
        book = CouponBook(redis, SECRET.encode(), ManualClock(NOW + 1_000))
        receipts = []
        for customer, status in zip(FREE, ("redeemed", "opened", "redeemed"), strict=False):
            decision = decisions[customer]
            if status == "redeemed":
                coupon = await book.apply(offer_of(decision, ABANDONED))
                await book.redeem(coupon.code, WORLD.stores[0].store_id, f"till-{customer}", discount_cents=77)
            receipts.append(
                Receipt(
                    id=uuid.uuid4().hex,
                    uid=customer,
                    ts=NOW + 2_000,
                    message=message_id(decision.id, "customer"),
                    decision=decision.id,
                    status=status,  # type: ignore[arg-type]
                    channel="websocket",
                )
            )
        await book.rollback(book.code_of(decisions[FREE[2]].id), f"till-{FREE[2]}")
        bought = Purchase(id="p", uid=HELD[0], ts=NOW + 3_000, items=[Line(sku="beans", amount_cents=1_299)])
        await bench.send(*receipts, bought)
        await bench.caught_up()
    await log.stop()
    return decisions


async def test_a_row_for_everything_that_could_have_been_done(redis: Redis, valkey_url: str, shell: Shell) -> None:
    """One chosen row for each decision, its inputs and values as decided, and what came of it from messages, coupons
    and purchases.
    """
    decisions = await fill(redis, valkey_url)
    result = await shell("--with-customer-ids")
    assert result.exit_code == 0, result.stderr
    frame = pd.read_parquet(shell.out)
    assert list(frame.columns) == [name for name, _ in COLUMNS] + [f"f_{name}" for name in REDEEM.columns]
    assert len(frame) == sum(len(decision.candidates) + 1 for decision in decisions.values())
    assert f"{len(PEOPLE)} decisions about {len(PEOPLE)} customers, {len(frame)} rows" in result.stdout
    chosen = frame[frame.chosen].set_index("customer")
    assert sorted(chosen.index) == sorted(PEOPLE)
    for customer, decision in decisions.items():
        row = chosen.loc[customer]
        assert (row.decision, row.outcome, row.held_out) == (decision.id, decision.outcome, customer in HELD)
        assert row["at"].value == decision.at_ms * 1_000_000
        assert row.chosen_probability == row.probability == decision.chosen_probability
        if customer in FREE:
            (winner,) = decision.candidates
            assert (row.promotion, row.sku, row.kind) == ("abandoned", "beans", "offer")
            assert (row.value_cents, row.cost_cents) == (100.0, winner.cost_cents)
            assert [row[f"f_{name}"] for name in REDEEM.columns] == winner.inputs
        else:
            assert (row.kind, row.position, row.reason) == ("nothing", -1, "holdout")
            assert (row.would_be_promotion, row.would_be_sku) == ("abandoned", "beans")
    cost = chosen.loc[FREE[0]].cost_cents
    outcomes = chosen.loc[FREE[:4], ["status", "delivered", "opened", "applied", "redeemed", "reward_cents"]]
    assert [list(row) for row in outcomes.fillna({"status": "none yet"}).itertuples(index=False)] == [
        ["redeemed", True, True, True, True, 100.0 - cost],
        ["opened", True, True, False, False, -cost],
        # Called off at the till, which the log has not heard of yet.
        ["redeemed", True, True, True, False, -cost],
        ["none yet", False, False, False, False, -cost],
    ]
    assert chosen.loc[FREE[0]].redeemed_store == "graben"
    assert chosen.loc[FREE[0]].redeemed_cents == 77
    assert pd.isna(chosen.loc[FREE[2]].redeemed_cents)
    assert chosen.loc[FREE[0]].redeemed_at.value == (NOW + 1_000) * 1_000_000
    assert chosen.loc[HELD[0]].purchased_after
    assert not chosen.loc[HELD[1:]].purchased_after.any()
    assert chosen.loc[HELD].reward_cents.eq(0).all()
    assert frame[~frame.chosen][["status", "redeemed", "reward_cents", "purchased_after"]].isna().all(axis=None)


async def test_names_nobody(redis: Redis, valkey_url: str, shell: Shell) -> None:
    """Nothing in the file is a name, a contact point, an id or a position; ids are hashes that another secret makes
    otherwise, and a reader who isn't the owner can't open it.
    """
    decisions = await fill(redis, valkey_url)
    assert (await shell()).exit_code == 0
    frame = pd.read_parquet(shell.out)
    assert frame.customer.nunique() == frame.decision.nunique() == len(PEOPLE)
    # Compressed pages hide words: search what a reader gets, too.
    words = shell.out.read_bytes() + frame.to_csv().encode()
    secrets = ["Archer", "example.org", "6601234567", "person-number", str(metres_north(80)), str(LNG), "till-"]
    secrets += [decision.id for decision in decisions.values()]
    secrets += [decision.moment.event for decision in decisions.values()]
    assert [secret for secret in secrets if secret.encode() in words] == []
    assert stat.S_IMODE(shell.out.stat().st_mode) == 0o600
    shell.out.unlink()
    shell.environment["NEARCAST_COUPON_SECRET"] = SECRET + "2"
    assert (await shell()).exit_code == 0
    assert not set(pd.read_parquet(shell.out).customer) & set(frame.customer)


def decided(number: int, candidates: Sequence[Candidate], **fields: object) -> Decision:
    """A decision about the customer of that number, `number` seconds after `NOW`."""
    moment = Moment(
        event=EventId(f"e{number}"),
        customer=CustomerId(f"c{number}"),
        trigger="enter",
        at_ms=NOW + number * 1_000,
        subject="fence",
    )
    given = {"outcome": "nothing", "rules_version": "1", "model_version": "m", "candidates": list(candidates)}
    return Decision(
        id=DecisionId(f"d{number}"),
        moment=moment,
        at_ms=moment.at_ms,
        deadline_ms=moment.at_ms,
        **given | fields,  # type: ignore[arg-type]
    )


async def put(redis: Redis, decisions: Sequence[Decision]) -> None:
    """Commit the decisions, as the engine does."""
    state = StateStore(redis, PARTITIONS)
    await redis.set(keys.partitions(), PARTITIONS)
    for partition in range(PARTITIONS):
        mine = [decision for decision in decisions if state.partition(decision.customer) == partition]
        owner = await state.take(partition)
        batch = Commit(partition=partition, epoch=owner.epoch, expected=owner.offsets, decisions=mine)
        await state.commit([state.encode(batch)])


async def test_many_people_and_a_window(redis: Redis, shell: Shell) -> None:
    """More customers than are read at a time: each decision once, and only those within --since and --until."""
    await put(redis, [decided(number, []) for number in range(230)])
    assert (await shell("--with-customer-ids")).exit_code == 0
    everything = pd.read_parquet(shell.out)
    assert sorted(everything.decision) == sorted(f"d{number}" for number in range(230))
    assert (everything.kind == "nothing").all()
    shell.out.unlink()
    since, until = (pd.Timestamp(NOW + s * 1_000, unit="ms").isoformat() for s in (100, 105))
    result = await shell("--with-customer-ids", "--since", since, "--until", until)
    assert "5 decisions about 5 customers" in result.stdout
    assert sorted(pd.read_parquet(shell.out).decision) == ["d100", "d101", "d102", "d103", "d104"]


async def test_probabilities_add_up(redis: Redis, shell: Shell) -> None:
    """What is missing to 1 is that of nothing; what never was a choice has none; a release that noted none leaves none.
    Inputs of other features are left out, and that is said.
    """
    row = [float(number) for number in range(len(REDEEM.columns))]

    def scored(name: str, probability: float | None, stopped: Reason | None = Reason.OUTRANKED) -> Candidate:
        return Candidate(
            promotion=PromotionId(name),
            sku=Sku("s"),
            stopped_by=stopped,
            propensity=0.1,
            value_cents=100.0,
            cost_cents=1.0,
            expected_cents=9.0,
            probability=probability,
            inputs=row,
        )

    stopped = Candidate(promotion=PromotionId("stopped"), stopped_by=Reason.CAPPED)
    offer = {"outcome": "offer", "promotion": "a", "sku": "s", "features_hash": REDEEM.hash}
    await put(
        redis,
        [
            decided(
                1,
                [stopped, scored("a", 0.7, None), scored("b", 0.1)],
                explored=True,
                arms={"brew": 0.123456789},
                **offer,
            ),
            decided(2, [scored("a", None, None)], **offer | {"features_hash": "0" * 64}),
        ],
    )
    result = await shell("--with-customer-ids")
    assert "1 decisions were made on other inputs" in result.stderr
    frame = pd.read_parquet(shell.out).set_index(["decision", "position"])
    first = frame.loc["d1"].probability
    assert first.loc[[1, 2]].tolist() == [0.7, 0.1]
    assert first.loc[-1] == pytest.approx(0.2)
    assert pd.isna(first.loc[0])
    assert frame.loc[("d1", 1), [f"f_{name}" for name in REDEEM.columns]].tolist() == row
    assert frame.loc["d2"].probability.isna().all()
    assert frame.loc["d2"].filter(like="f_").isna().all(axis=None)
    # A place with all its digits would tell who it is.
    assert frame.loc["d1"].arms.tolist() == ['{"brew":0.123}'] * 4
    assert frame.loc["d2"].arms.isna().all()
    # Nothing is known of the message: neither that it was redeemed nor that it was not.
    assert pd.isna(frame.loc[("d1", 1), "redeemed"])
    assert pd.isna(frame.loc[("d1", 1), "reward_cents"])


async def test_what_cannot_be_read_is_said(redis: Redis, shell: Shell) -> None:
    """A damaged decision is left out; a damaged customer's decisions have no outcome. Both are counted."""
    await put(redis, [decided(number, []) for number in range(3)])
    state = StateStore(redis, PARTITIONS)
    await redis.set(keys.decision(state.partition(CustomerId("c0")), "d0"), b"{")
    await redis.set(keys.customer(state.partition(CustomerId("c1")), "c1"), b"\x92\xff")
    result = await shell("--with-customer-ids")
    assert result.exit_code == 0
    assert "1 decisions could not be read" in result.stderr
    assert "1 customers' records could not be read" in result.stderr
    frame = pd.read_parquet(shell.out).set_index("decision")
    assert sorted(frame.index) == ["d1", "d2"]
    assert pd.isna(frame.loc["d1", "purchased_after"])
    assert not frame.loc["d2", "purchased_after"]


async def test_a_failed_export_leaves_nothing(redis: Redis, shell: Shell) -> None:
    """If the store fails half-way there is one line about it, exit code 2, and no file, half or whole."""
    await put(redis, [decided(number, []) for number in range(120)])
    # Not a list: reading it is an error of the store's.
    await redis.set(keys.decisions_of(0, "odd"), b"x")
    result = await shell()
    assert result.exit_code == 2
    assert "the state store can't be reached" in result.stderr
    assert list(shell.out.parent.iterdir()) == []


def test_an_interrupted_file_is_gone(tmp_path: Path) -> None:
    """Interrupted after many rows were written: nothing is left; until it is whole, it does not have its name."""
    path = tmp_path / "log.parquet"

    def interrupted() -> None:
        with LogWriter(path, ["one"]) as writer:
            for number in range(25_000):
                writer.add({"decision": f"d{number}", "f_one": 1.0})
            assert not path.exists()
            assert [part.stat().st_size > 10_000 for part in tmp_path.iterdir()] == [True]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk(tmp_path: Path) -> None:
    """No room: an error that names the file, and nothing is left of it."""
    path = tmp_path / "log.parquet"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def filling() -> None:
        with LogWriter(path, []) as writer:
            resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
            for number in range(50_000):
                writer.add({"decision": f"d{number}"})

    try:
        with pytest.raises(InputError, match=r"can't be written: File too large \(.*log.parquet\)"):
            filling()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


async def test_an_existing_file_is_left_alone(redis: Redis, shell: Shell) -> None:
    """Neither overwritten nor removed; a folder that isn't there is an error, too."""
    shell.out.write_bytes(b"mine")
    result = await shell()
    assert (result.exit_code, shell.out.read_bytes()) == (2, b"mine")
    assert "there is such a file already" in result.stderr
    with pytest.raises(InputError, match="can't be created"):
        LogWriter(shell.out / "no" / "folder", [])


def test_every_column_is_documented() -> None:
    """The table in the documentation names the columns of the file, in their order."""
    text = Path(__file__).parents[2].joinpath("docs", "learning-loop.md").read_text(encoding="utf-8")
    table = text.partition("## The columns")[2].partition("\n## ")[0]
    documented = [
        name for line in re.findall(r"^\| (`[^|]*) \|", table, re.MULTILINE) for name in re.findall(r"`(\w+)`", line)
    ]
    assert documented == [name for name, _ in COLUMNS]
