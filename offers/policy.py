"""The retailer-wide rules that hold for every promotion. Values only; the gates apply them."""

from typing import Annotated

import msgspec

from nearcast.world import Cap, Minute, Share


class QuietHours(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A daily window in local wall-clock minutes; start included, end excluded; over midnight if it ends first."""

    starts: Minute
    ends: Minute

    def __post_init__(self) -> None:
        if self.starts == self.ends:
            raise ValueError("quiet hours that start and end at the same minute are empty: leave them out instead")


class Policy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What holds across promotions. The defaults suit a shop that has said nothing."""

    #: At most so many offers of all promotions together to one customer.
    caps: tuple[Cap, ...] = (Cap(count=6, period_s=86_400),)
    #: No offer is made or sent within; None means that no hour is quiet. Alerts to staff are not held up.
    quiet_hours: QuietHours | None = None
    #: A transition less likely than this is not acted on.
    min_confidence: Share = 0.5
    #: No offer follows from a position that is more doubtful than this. Alerts to staff go on.
    max_doubt: Share = 0.5
    #: A customer whom staff spoke to is left alone for this long.
    staff_contact_quiet_ms: Annotated[int, msgspec.Meta(ge=0)] = 30 * 60_000
    #: What one more offer costs in goodwill when the last one was ignored; it doubles with each further one in a row
    #: (`offers.worth`). So low that a promising offer is still made after a dozen, and a hopeless one after half that.
    annoyance_cents: Annotated[float, msgspec.Meta(ge=0, le=1_000_000)] = 0.001
    #: Offers older than this annoy nobody any more.
    annoyance_window_ms: Annotated[int, msgspec.Meta(ge=0)] = 7 * 86_400_000
    #: With this probability the choice among what passed every gate is left to chance, for the models to learn from.
    exploration: Share = 0.0
    #: This share of the customers gets no offers at all, so that the effect of offers can be measured.
    holdout: Share = 0.0
    #: Another salt holds other customers out.
    holdout_salt: str = ""
    #: An offer goes by the channel that the customer will most likely react to, and not in the promotion's order.
    best_channel_first: bool = False
    #: Whether promotions may make a price for one customer (`what.price_rule`).
    personal_prices: bool = False
