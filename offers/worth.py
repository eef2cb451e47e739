"""What a message costs, and so what it is worth: P(redeem) x value - cost. Saying nothing is worth 0.

The cost is the message's own and, of an offer, annoyance. Somebody who lets offers pass is told something by that, so
every offer ignored in a row doubles what the next one costs:

    annoyance = annoyance_cents x (2 ^ ignored - 1)

With the default of 0.001 cents the first offers are as good as free. One that is expected to bring 0.04 cents (all
that the shipped model expects of a stranger, where a redemption is worth 100) stops after six in a row, one of 30 cents
after fifteen. One reaction, and it begins anew; and what is older than the policy's window is forgotten.
"""

from collections.abc import Sequence

from nearcast.customer import UNSEEN, Customer, SentMessage
from nearcast.world import Promotion
from offers.catalogue import Catalogue
from offers.gates import offers_to
from offers.policy import Policy

#: What was taken back says nothing of whoever it was taken from.
_NO_ANSWER = UNSEEN | {"expired", "recalled"}


def ignored(customer: Customer, catalogue: Catalogue, policy: Policy, at_ms: int) -> int:
    """How many offers the customer has not reacted to since the last one that they did react to, within the window.

    To open, apply or redeem is a reaction; to dismiss is none, nor does it undo one. What was just sent counts already,
    as it does for caps.
    """
    return ignored_of(offers_to(customer, catalogue), policy, at_ms)


def ignored_of(offers: Sequence[SentMessage], policy: Policy, at_ms: int) -> int:
    """`ignored`, for whoever knows the offers already; the newest last."""
    since_ms = at_ms - policy.annoyance_window_ms
    count = 0
    for sent in reversed(offers):
        if sent.answered:
            break
        count += sent.at_ms > since_ms and sent.status not in _NO_ANSWER
    return count


def annoyance_cents(promotion: Promotion, times_ignored: int, policy: Policy) -> float:
    """What one more message costs in goodwill. Alerts go to staff, and annoy no customer."""
    return policy.annoyance_cents * (2.0**times_ignored - 1.0) if promotion.kind == "offer" else 0.0


def cost_cents(promotion: Promotion, times_ignored: int, policy: Policy) -> float:
    """What one message costs in all."""
    return promotion.cost_cents + annoyance_cents(promotion, times_ignored, policy)
