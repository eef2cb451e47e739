"""Who is held out, and who is in which arm of an experiment: shares of the customers that stay the same.

A customer's place in a whole, 0..1, is a hash of their id and of what the whole is called. So every process and every
replay finds the same one, and where somebody is in one whole says nothing of where they are in another.
"""

from nearcast.ids import CustomerId, place_of
from nearcast.world import Experiment, Promotion
from offers.policy import Policy


def place_in(experiment: Experiment, customer: CustomerId) -> float:
    """Where the customer is in an experiment: in all of its arms the same."""
    return place_of("experiment", experiment.name, customer)


def in_arm(experiment: Experiment, customer: CustomerId) -> bool:
    """Whether this arm is theirs."""
    return experiment.starts <= place_in(experiment, customer) < experiment.ends


def is_held_out(promotion: Promotion, customer: CustomerId, policy: Policy) -> bool:
    """Whether the customer gets no offers, or not this one. Alerts to staff are no offers."""
    if promotion.kind != "offer":
        return False
    return (policy.holdout > 0 and place_of("holdout", policy.holdout_salt, customer) < policy.holdout) or (
        promotion.holdout > 0 and place_of("promotion", promotion.id, customer) < promotion.holdout
    )
