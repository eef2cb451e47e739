"""Next-best channel: by which one a customer will most likely react to a message. Pure."""

from collections.abc import Sequence
from typing import NamedTuple

from models.features.channel import row
from models.registry import Serving
from nearcast.customer import Customer
from nearcast.events import Channel


class Asked(NamedTuple):
    """A customer, the channels that a message to them may take, in the order of preference, and when."""

    customer: Customer
    channels: Sequence[Channel]
    at_ms: int


class Way(NamedTuple):
    """A channel, P(the customer reacts to a message that comes by it), and the version of the model that says so."""

    channel: Channel
    probability: float
    model: str


def best_first(questions: Sequence[Asked], serving: Serving) -> list[list[Way]]:
    """For each question its channels, likeliest first; equals stay in their order. One call for all questions."""
    rows = [row(customer, channel, at_ms) for customer, channels, at_ms in questions for channel in channels]
    scored = serving.score(rows, [customer.id for customer, channels, _ in questions for _ in channels])
    found = iter(zip(scored.values, scored.versions, strict=True))
    return [
        sorted((Way(channel, *next(found)) for channel in channels), key=lambda way: -way.probability)
        for _, channels, _ in questions
    ]
