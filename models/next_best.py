"""Next-best product: which segments a customer will most likely buy from within a week. Pure."""

from collections.abc import Container
from typing import NamedTuple

from models.features.buy_next import BUY_NEXT, customer_part, row
from models.registry import Serving
from nearcast.customer import Customer

_RECENT_RATE = BUY_NEXT.columns.index("log_segment_recent_rate")


class NextBest(NamedTuple):
    """A segment, P(the customer buys from it within a week), and the version of the model that says so."""

    segment: str
    probability: float
    model: str


def predictions(customer: Customer, segments: Container[str], serving: Serving, at_ms: int, top: int) -> list[NextBest]:
    """The `top` likeliest of those `segments` that the customer has bought from, likeliest first.

    Where the model can't tell two apart, what was bought more often of late comes first.
    """
    asked = [(name, entry) for name, entry in customer.history.segments.items() if name in segments]
    part = customer_part(customer, at_ms)
    rows = [row(part, entry) for _, entry in asked]
    scored = serving.score(rows, [customer.id] * len(rows))
    found = [
        (-probability, -columns[_RECENT_RATE], segment, version)
        for (segment, _), columns, probability, version in zip(asked, rows, *scored, strict=True)
    ]
    return [NextBest(segment, -negative, version) for negative, _, segment, version in sorted(found)[:top]]
