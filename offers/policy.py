"""The retailer-wide rules that hold for every promotion. Values only; the gates apply them."""

from typing import Annotated

import msgspec

from nearcast.world import Cap, Minute


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
    min_confidence: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.5
    #: No offer follows from a position that is more doubtful than this. Alerts to staff go on.
    max_doubt: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.5
    #: A customer whom staff spoke to is left alone for this long.
    staff_contact_quiet_ms: Annotated[int, msgspec.Meta(ge=0)] = 30 * 60_000
