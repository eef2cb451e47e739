"""The channel model: will this customer react to a message that comes by this channel?

No public history tells what people did with messages on several channels. So the shipped model learns from made-up
people: each has a readiness of their own for each channel, spread around what is usual; messages come to them at
random, and what they do goes through the serving fold as receipts. It is a prior that goes on from each customer's own
receipts, made by the same steps as the other models. Data of one's own change the customers' number and the dates only:
a model of real receipts has to be brought (docs/models.md says how).
"""

import hashlib
from collections.abc import Iterator, Mapping

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from models.features.base import FeatureSet
from models.features.channel import CHANNEL, IMAGINED, USUAL, row
from models.training.dataset import Dataset, Example
from models.training.history import History
from models.training.task import Classifier, Probabilities, Words
from nearcast import fold
from nearcast.customer import Customer
from nearcast.decisions import Decision
from nearcast.events import Channel, DeliveryStatus, Receipt
from nearcast.ids import CustomerId, DecisionId, EventId, MessageId, PromotionId
from nearcast.moments import Moment

#: Messages to one customer in a year, at most; and how unlike each other people are: a readiness counts as much as that
#: many messages seen.
_MESSAGES = 60
_ALIKE = 3.0
_RULES = fold.FoldRules()


class ChannelTask:
    """See `models.training.task.Task`."""

    features: FeatureSet = CHANNEL
    choose_from = "2017-06-15"
    test_from = "2017-08-15"
    words = Words(
        question="How likely is it that this customer opens a message, or does more with it, if it comes by this "
        "channel? It orders the channels that a promotion allows. Which of them may be used is asked when it is sent.",
        row="A row is one made-up message; its group is the channel. The outcome is that it was opened, applied or "
        "redeemed.",
        data="Made up, each customer and message by chance; only the number of customers and the dates are those of "
        "the public purchase history.",
        limits="""
The people are made up: no public data has messages on several channels and what became of them. What the model knows
is what its authors assume (how often people react on each channel, how unlike they are) and how to go on from there by
what each customer does. The figures above say that it does the latter well, not that the former is right.

A customer of whom nothing is known gets the usual order: the app, then SMS, then e-mail.

It says nothing of cost, nor of how soon a message is seen.
""",
    )

    def examples(self, history: History, customer: CustomerId) -> Iterator[Example]:
        random = np.random.default_rng(int.from_bytes(hashlib.blake2b(customer.encode(), digest_size=8).digest()))
        known = Customer(id=customer)
        ready = {channel: random.beta(usual * _ALIKE, (1 - usual) * _ALIKE) for channel, usual in USUAL.items()}
        times = np.sort(random.integers(history.begins_ms, history.ends_ms, random.integers(1, _MESSAGES)))
        for number, at_ms in enumerate(times.tolist()):
            channel: Channel = random.choice(list(USUAL))
            reacts = bool(random.random() < ready[channel])
            yield Example(
                row=row(known, channel, at_ms),
                outcome=reacts,
                at_ms=at_ms,
                group=channel,
                customer=customer,
                signals=_signals(known, channel, at_ms),
            )
            _send(known, number, channel, at_ms, reacts=reacts)

    def algorithms(self, seed: int) -> Mapping[str, Classifier]:  # noqa: ARG002  nothing is drawn
        return {
            f"logistic regression on standardised features, C = {c:g}": make_pipeline(
                StandardScaler(), LogisticRegression(C=c, max_iter=1_000)
            )
            for c in (0.01, 0.1, 1.0)
        }

    def baselines(self, train: Dataset, test: Dataset) -> Mapping[str, Probabilities]:
        usual = np.array([train.outcome[train.group == channel].mean() for channel in USUAL])
        place = {channel: number for number, channel in enumerate(USUAL)}
        return {
            "prior": np.full(len(test.outcome), train.outcome.mean()),
            "by channel": usual[[place[channel] for channel in test.group]],
            "own rate so far": test.signals["own_rate"],
        }


def _signals(customer: Customer, channel: Channel, at_ms: int) -> dict[str, float]:
    """The rate at which the customer has reacted on this channel, eked out as the features are."""
    history, usual = customer.channels.get(channel), USUAL[channel]
    sent, reacted = (history.sent.at(at_ms), history.reacted.at(at_ms)) if history else (0.0, 0.0)
    return {"own_rate": float(np.clip((reacted + IMAGINED * usual) / (sent + IMAGINED), 0.01, 0.99))}


def _send(customer: Customer, number: int, channel: Channel, at_ms: int, *, reacts: bool) -> None:
    """A message and its receipts, as live serving would have them."""
    decision, message = DecisionId(f"decision-{number}"), MessageId(f"message-{number}")
    moment = Moment(event=EventId(f"event-{number}"), customer=customer.id, trigger="app_open", at_ms=at_ms, subject="")
    fold.record_message(
        customer,
        message,
        Decision(
            id=decision,
            moment=moment,
            outcome="offer",
            at_ms=at_ms,
            deadline_ms=at_ms,
            candidates=[],
            rules_version="made-up",
            model_version="none",
            promotion=PromotionId("made-up"),
        ),
    )
    statuses: tuple[DeliveryStatus, ...] = ("sent", "opened") if reacts else ("sent",)
    for status in statuses:
        receipt = Receipt(
            id=f"{message}-{status}",
            uid=customer.id,
            ts=at_ms,
            message=message,
            decision=decision,
            status=status,
            channel=channel,
        )
        fold.apply(customer, receipt, {}, _RULES)
