"""Which channel an offer tries first: the promotion's first, or the one that the customer reacts to."""

from importlib import resources
from pathlib import Path

import msgspec
from redis.asyncio import Redis

from models.registry import FixedModels, Models
from models.scorer import Scorer
from nearcast.events import Action, Consent, Event, Receipt
from nearcast.messages import Message
from nearcast.world import Cap, Promotion, Words
from offers.policy import Policy
from server.world import WorldStore
from tests.server.rig import SCORER, Playback, committed, engine_on, records_of
from tests.server.town import WORLD

NOW = 1_795_000_000_000
MINUTE = 60_000
HELLO = Promotion(
    id="hello",
    name="Hello",
    trigger="app_open",
    channels=["websocket", "email"],
    caps=[Cap(count=100, period_s=86_400)],
    words={"en": Words(title="Hello")},
)
CHANNEL = Scorer.load(Path(str(resources.files("models").joinpath("artifacts", "channel"))), "channel")


async def opened_six_times(redis: Redis, policy: Policy, models: Models) -> list[Message]:
    """What Ann gets, who opens each e-mail and nothing else, every time she opens the app."""
    store = WorldStore(redis)
    await store.put(msgspec.structs.replace(WORLD, promotions=[HELLO]))
    engine = engine_on(redis, Playback(), store, policy=policy, models=models)
    await engine.follow_assignment()
    consents: list[Event] = [
        Consent(id=f"c-{scope}", uid="ann", ts=NOW, scope=scope, granted=True) for scope in ("websocket", "email")
    ]
    await engine.process(records_of(consents, NOW))
    sent: list[Message] = []
    for time in range(6):
        at_ms = NOW + (time + 1) * 60 * MINUTE
        await engine.process(records_of([Action(id=f"open-{time}", uid="ann", ts=at_ms, action="app_open")], at_ms))
        known = {message.id for message in sent}
        new = [entry for entry in (await committed(redis)).outbox if isinstance(entry, Message)]
        (message,) = [message for message in new if message.id not in known]
        sent.append(message)
        # What goes to the app is ignored; every other time it goes by e-mail, whatever the order.
        way = ("email", "opened") if time % 2 else ("websocket", "sent")
        await engine.process(records_of([receipt_of(message, *way, at_ms)], at_ms))
    return sent


def receipt_of(message: Message, channel: str, status: str, at_ms: int) -> Receipt:
    return msgspec.convert(
        {
            "type": "receipt",
            "id": f"{message.id}-{status}",
            "uid": "ann",
            "ts": at_ms + MINUTE,
            "message": message.id,
            "decision": message.decision,
            "status": status,
            "channel": channel,
        },
        Receipt,
    )


async def test_by_default_the_promotion_says_which(redis: Redis) -> None:
    """However somebody reacts; and the decision says nothing of it."""
    sent = await opened_six_times(redis, Policy(), FixedModels(SCORER, CHANNEL))
    assert [message.channels for message in sent] == [["websocket", "email"]] * 6
    assert all(not decision.channels for decision in (await committed(redis)).decisions.values())


async def test_what_a_customer_reacts_to_comes_first(redis: Redis) -> None:
    """The app at first, as is usual; e-mail once it has shown to be the better one; the decision gives both chances."""
    sent = await opened_six_times(redis, Policy(best_channel_first=True), FixedModels(SCORER, CHANNEL))
    orders = [message.channels for message in sent]
    assert orders[0] == ["websocket", "email"]
    assert orders[-1] == ["email", "websocket"]
    decisions = (await committed(redis)).decisions
    for message in sent:
        chances = decisions[message.decision].channels
        assert list(chances) == message.channels
        assert list(chances.values()) == sorted(chances.values(), reverse=True)
        assert all(0 < chance < 1 for chance in chances.values())


async def test_without_a_model_the_promotion_says_which(redis: Redis) -> None:
    """Every channel gets the same fallback score then."""
    sent = await opened_six_times(redis, Policy(best_channel_first=True), FixedModels(SCORER))
    assert [message.channels for message in sent] == [["websocket", "email"]] * 6
