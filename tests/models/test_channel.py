"""What is known of a customer's channels, and what the model makes of it."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import models
from models.features import redeem
from models.features.channel import CHANNEL, USUAL, row
from models.scorer import Scorer
from models.training.channel import ChannelTask
from models.training.extract import extract
from models.training.history import History
from nearcast import fold
from nearcast.customer import HALF_LIFE_MS, Customer
from nearcast.decisions import Decision
from nearcast.events import Channel, DeliveryStatus, Receipt
from nearcast.ids import CustomerId, DecisionId, EventId, MessageId, PromotionId
from nearcast.moments import Moment
from nearcast.world import Promotion, Words

NOW_MS = 1_750_000_000_000
CHANNELS: list[Channel] = ["websocket", "sms", "email"]
STATUSES: list[DeliveryStatus] = [
    "sent",
    "delivered",
    "opened",
    "dismissed",
    "applied",
    "redeemed",
    "failed",
    "suppressed",
    "recalled",
    "expired",
]


def write_to(customer: Customer, name: str, outcome: str = "offer") -> None:
    moment = Moment(event=EventId(name), customer=customer.id, trigger="app_open", at_ms=NOW_MS, subject="")
    decision = Decision(
        id=DecisionId(name),
        moment=moment,
        outcome=outcome,
        at_ms=NOW_MS,
        deadline_ms=NOW_MS,
        candidates=[],
        rules_version="r",
        model_version="m",
        promotion=PromotionId("p"),
    )
    fold.record_message(customer, MessageId(name), decision)


def report(customer: Customer, name: str, status: DeliveryStatus, channel: Channel | None, at_ms: int = NOW_MS) -> None:
    receipt = Receipt(
        id=f"{name}-{status}", uid=customer.id, ts=at_ms, message=name, decision=name, status=status, channel=channel
    )
    fold.apply(customer, receipt, {}, fold.FoldRules())


def counts(customer: Customer, at_ms: int = NOW_MS) -> dict[str, tuple[float, float]]:
    return {name: (one.sent.at(at_ms), one.reacted.at(at_ms)) for name, one in customer.channels.items()}


def test_each_message_counts_once() -> None:
    """However many receipts tell of it, and whichever of them never arrive."""
    customer = Customer(id=CustomerId("u"))
    for name in "abcd":
        write_to(customer, name)
    for status in ("sent", "delivered", "opened", "applied", "redeemed", "opened"):
        report(customer, "a", status, "websocket")
    report(customer, "b", "redeemed", "websocket")
    report(customer, "c", "sent", "sms")
    report(customer, "c", "dismissed", "sms")
    assert counts(customer) == {"websocket": (2.0, 2.0), "sms": (1.0, 0.0)}
    report(customer, "d", "suppressed", None)
    assert counts(customer) == {"websocket": (2.0, 2.0), "sms": (1.0, 0.0)}


def test_what_failed_after_all_was_not_sent() -> None:
    """A provider takes a message and then can't deliver it; the next channel can."""
    customer = Customer(id=CustomerId("u"))
    write_to(customer, "a")
    report(customer, "a", "sent", "sms")
    report(customer, "a", "failed", "sms")
    report(customer, "a", "sent", "email")
    report(customer, "a", "opened", "email")
    assert counts(customer) == {"sms": (0.0, 0.0), "email": (1.0, 1.0)}


def test_a_reaction_counts_for_the_channel_that_brought_the_message() -> None:
    """The SMS is what they opened, though the app reports it."""
    customer = Customer(id=CustomerId("u"))
    write_to(customer, "a")
    report(customer, "a", "sent", "sms")
    report(customer, "a", "opened", "websocket")
    assert counts(customer) == {"sms": (1.0, 1.0)}


def test_what_was_taken_back_unseen_was_not_sent() -> None:
    """Unless they had reacted to it; and to close what one has opened takes no reaction back."""
    customer = Customer(id=CustomerId("u"))
    for name in "ab":
        write_to(customer, name)
        report(customer, name, "delivered", "websocket")
    report(customer, "a", "recalled", "websocket")
    assert counts(customer) == {"websocket": (1.0, 0.0)}
    report(customer, "b", "opened", "websocket")
    report(customer, "b", "dismissed", "websocket")
    assert counts(customer) == {"websocket": (1.0, 1.0)}
    assert [sent.answered for sent in customer.messages] == [False, True]


def test_alerts_to_staff_say_nothing_of_the_customer() -> None:
    """They go by the staff's tablets, whatever channel the receipt names; no model counts them."""
    customer, stranger = Customer(id=CustomerId("u")), Customer(id=CustomerId("u"))
    for number in range(8):
        write_to(customer, f"help-{number}", "assist")
        report(customer, f"help-{number}", "sent", "websocket")
    assert counts(customer) == {}
    nothing = Promotion(id="p", name="P", trigger="enter", words={"en": Words(title="Hello")})
    assert redeem.row(customer, nothing, None, NOW_MS) == redeem.row(stranger, nothing, None, NOW_MS)


def test_it_fades() -> None:
    """Half of it in four weeks."""
    customer = Customer(id=CustomerId("u"))
    write_to(customer, "a")
    report(customer, "a", "opened", "sms")
    assert counts(customer, NOW_MS + HALF_LIFE_MS) == {"sms": (0.5, 0.5)}


@given(
    st.lists(
        st.tuples(
            st.sampled_from("abc"),
            st.sampled_from(STATUSES),
            st.sampled_from([*CHANNELS, None]),
            st.integers(0, 9_999_999_999_999),
        ),
        max_size=12,
    ),
    st.sampled_from(CHANNELS),
    st.integers(0, 9_999_999_999_999),
)
def test_every_feature_is_finite(
    receipts: list[tuple[str, DeliveryStatus, Channel | None, int]], channel: Channel, at_ms: int
) -> None:
    """Whatever was reported, whenever."""
    customer = Customer(id=CustomerId("u"))
    for name in "abc":
        write_to(customer, name)
    for name, status, by, when_ms in receipts:
        report(customer, name, status, by, when_ms)
    values = row(customer, channel, at_ms)
    assert len(values) == len(CHANNEL.columns)
    assert all(math.isfinite(value) and abs(value) < 1e3 for value in values)


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    return Scorer.load(Path(models.__file__).parent / "artifacts" / "channel", "channel")


def test_a_stranger_is_like_everybody(scorer: Scorer) -> None:
    """As likely to react as the assumed rates say, give or take what the sample of made-up people was like."""
    stranger = Customer(id=CustomerId("u"))
    for channel in CHANNELS:
        (score,) = scorer.score([row(stranger, channel, NOW_MS)])
        assert score == pytest.approx(USUAL[channel], abs=0.06)


def test_it_learns_from_what_a_customer_does(scorer: Scorer) -> None:
    """Eight opened e-mails and eight ignored messages in the app turn the order around."""
    customer = Customer(id=CustomerId("u"))

    def score(channel: Channel) -> float:
        return scorer.score([row(customer, channel, NOW_MS)])[0]

    assert score("websocket") > score("email")
    for number in range(8):
        for channel in ("websocket", "email"):
            name = f"{channel}-{number}"
            write_to(customer, name)
            report(customer, name, "opened" if channel == "email" else "sent", channel)
    assert score("email") > 0.4 > 0.2 > score("websocket")


def test_the_shipped_model_is_calibrated_and_beats_counting(history: History, scorer: Scorer) -> None:
    """On made-up people that it has seen and dates that it has not: against the customer's own rate so far."""
    rows = extract(history, ChannelTask())
    later = rows.where(rows.at_ms >= 1_502_755_200_000)  # 2017-08-15
    scores = np.array(scorer.score(later.rows.tolist()))
    assert abs(scores.mean() - later.outcome.mean()) < 0.02

    def loss(guess: np.ndarray) -> float:
        return float(-np.log(np.where(later.outcome, guess, 1 - guess)).mean())

    assert loss(scores) < loss(later.signals["own_rate"])
