"""What a message is worth, who is held out and what is left to chance: through a real engine and store."""

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from redis.asyncio import Redis

from nearcast.decisions import Decision, Reason
from nearcast.events import Consent, Event, Line, Location, Purchase, Receipt
from nearcast.ids import place_of
from nearcast.messages import Message
from nearcast.world import Cap, Promotion, Words
from offers.policy import Policy
from server.core import policy_of
from server.settings import load
from server.world import WorldStore
from tests.server.rig import SCORER, Playback, committed, engine_on, records_of
from tests.server.town import LNG, WORLD, metres_north

NOW = 1_795_000_000_000
MINUTE = 60_000
HELLO = Promotion(
    id="hello",
    name="Hello",
    trigger="walk_past",
    caps=[Cap(count=100, period_s=86_400)],
    words={"en": Words(title="Hello")},
)


class Street:
    """People who walk past the store, and an engine that decides what they get."""

    def __init__(self, redis: Redis, policy: Policy, *promotions: Promotion) -> None:
        self._redis = redis
        self._world = msgspec.structs.replace(WORLD, promotions=list(promotions))
        self._store = WorldStore(redis)
        self._engine = engine_on(redis, Playback(), self._store, policy=policy)
        self._minute = 0

    async def open(self, *people: str) -> None:
        await self._store.put(self._world)
        await self._engine.follow_assignment()
        await self.happens([Consent(id=f"c-{who}", uid=who, ts=NOW, scope="websocket", granted=True) for who in people])

    async def walk_past(self, *people: str) -> list[Decision]:
        """Everybody comes by, and has left again; returns what was decided about it."""
        known = set((await committed(self._redis)).decisions)
        for metres in (80.0, 2_000.0, 2_000.0):
            self._minute += 30
            at_ms = NOW + self._minute * MINUTE
            await self.happens(
                [
                    Location(id=f"{who}-{at_ms}", uid=who, ts=at_ms, lat=metres_north(metres), lng=LNG, accuracy_m=5.0)
                    for who in people
                ]
            )
        found = (await committed(self._redis)).decisions
        return [found[name] for name in found.keys() - known]

    async def happens(self, events: Sequence[Event]) -> None:
        await self._engine.process(records_of(events, NOW + self._minute * MINUTE))

    async def messages(self) -> list[Message]:
        return [entry for entry in (await committed(self._redis)).outbox if isinstance(entry, Message)]


async def test_until_it_is_not_worth_it_and_again_after_a_reaction(redis: Redis) -> None:
    """An offer that is ignored makes the next one cost more than it can bring; one that is opened makes good for it."""
    street = Street(redis, Policy(annoyance_cents=1_000.0), HELLO)
    await street.open("ann")
    (offer,) = await street.walk_past("ann")
    assert (offer.outcome, offer.candidates[0].cost_cents) == ("offer", 0.0)
    assert offer.candidates[0].propensity == pytest.approx(SCORER.score([offer.candidates[0].inputs])[0], abs=1e-12)

    (message,) = await street.messages()
    await street.happens([_receipt(message, "delivered")])
    (nothing,) = await street.walk_past("ann")
    assert (nothing.outcome, nothing.reason) == ("nothing", Reason.NOT_WORTH_IT)
    (candidate,) = nothing.candidates
    assert (candidate.stopped_by, candidate.value_cents, candidate.cost_cents) == (Reason.NOT_WORTH_IT, 100.0, 1_000.0)
    assert candidate.expected_cents == pytest.approx((candidate.propensity or 0.0) * 100 - 1_000)
    assert len(await street.messages()) == 1

    await street.happens([_receipt(message, "opened")])
    (again,) = await street.walk_past("ann")
    assert (again.outcome, again.candidates[0].cost_cents) == ("offer", 0.0)


async def test_every_candidate_has_its_own_inputs(redis: Redis) -> None:
    """Decisions of one batch, made with one call of the model: each record scored again gives its own probability."""
    people = [f"c{number}" for number in range(8)]
    street = Street(redis, Policy(), HELLO)
    await street.open(*people)
    line = Line(sku="beans", quantity=1, amount_cents=1_299)
    await street.happens(
        [
            Purchase(id=f"{who}-{basket}", uid=who, ts=NOW + basket, store="graben", items=[line])
            for number, who in enumerate(people)
            for basket in range(number)
        ]
    )
    candidates = [decision.candidates[0] for decision in await street.walk_past(*people)]
    assert len({tuple(candidate.inputs) for candidate in candidates}) == len(people)
    for candidate in candidates:
        assert candidate.propensity == pytest.approx(SCORER.score([candidate.inputs])[0], abs=1e-12)


async def test_held_out_people_get_nothing_and_the_record_says_what(redis: Redis) -> None:
    """The share that the setting names, by an independent count; alerts to staff go out all the same."""
    people = [f"c{number}" for number in range(60)]
    held = {who for who in people if place_of("holdout", "spring", who) < 0.4}
    assert 0 < len(held) < 60
    alert = msgspec.structs.replace(HELLO, id="vip", kind="assist", value_cents=0)
    street = Street(redis, Policy(holdout=0.4, holdout_salt="spring"), HELLO, alert)
    await street.open(*people)
    decisions = {decision.customer: decision for decision in await street.walk_past(*people)}
    assert {who for who, decision in decisions.items() if decision.would_be is not None} == held
    for who, decision in decisions.items():
        assert (decision.outcome, decision.promotion) == (("assist", "vip") if who in held else ("offer", "hello"))
        assert decision.would_be is None or decision.would_be.promotion == "hello"


async def test_chance_lets_nothing_through_that_a_gate_stops(redis: Redis) -> None:
    """With everything left to chance, caps and consent hold as ever; and each draw is logged with its probability."""
    people = [f"c{number}" for number in range(30)]
    once = msgspec.structs.replace(HELLO, id="once", caps=[Cap(count=1, period_s=86_400)])
    mailed = msgspec.structs.replace(HELLO, id="mailed", channels=["email"])
    street = Street(redis, Policy(exploration=1.0, caps=()), once, mailed)
    await street.open(*people)
    first = await street.walk_past(*people)
    got = {decision.customer for decision in first if decision.promotion == "once"}
    assert {decision.promotion for decision in first} == {"once", None}
    assert {decision.chosen_probability for decision in first} == {0.5}
    assert 0 < len(got) < len(people)
    second = {decision.customer: decision for decision in await street.walk_past(*people)}
    assert {second[who].reason for who in got} == {Reason.CAPPED}
    assert all(who not in got for who, decision in second.items() if decision.promotion)


def test_the_settings_reach_the_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of them, in the policy's units; and the defaults are the policy's own."""
    own = Policy()
    policy = policy_of(load())
    for name in ("annoyance_cents", "annoyance_window_ms", "exploration", "holdout", "holdout_salt"):
        assert getattr(policy, name) == getattr(own, name)
    settings: dict[str, Any] = {
        "ANNOYANCE_CENTS": "0.5",
        "ANNOYANCE_WINDOW_S": "90.5",
        "EXPLORATION": "0.05",
        "HOLDOUT": "0.1",
        "HOLDOUT_SALT": "june",
    }
    for name, value in settings.items():
        monkeypatch.setenv(f"NEARCAST_{name}", value)
    policy = policy_of(load())
    assert (policy.annoyance_cents, policy.annoyance_window_ms, policy.exploration) == (0.5, 90_500, 0.05)
    assert (policy.holdout, policy.holdout_salt) == (0.1, "june")


def _receipt(message: Message, status: Any) -> Receipt:
    return Receipt(
        id=f"{message.id}-{status}",
        uid=message.customer,
        ts=message.at_ms + 1_000,
        message=message.id,
        decision=message.decision,
        status=status,
        channel="websocket",
    )
