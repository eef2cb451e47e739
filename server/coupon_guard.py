"""What keeps coupons from being guessed and abused: bounds on how often, how many and how fast.

The counting itself is part of the scripts of `server.coupons`, in the same step as what is counted. A bound of 0 is
off.
"""

import hashlib
from collections.abc import Callable

import msgspec

from nearcast.ids import StoreId

#: Where a store is: latitude and longitude in degrees; None for one that isn't known.
Places = Callable[[StoreId], tuple[float, float] | None]


class Guard(msgspec.Struct, frozen=True, kw_only=True):
    """The bounds in force; all off unless said otherwise."""

    #: Codes that don't exist, which one API key may ask for at one store in `unknown_window_s`; then it hears nothing
    #: about any code until the window is over.
    most_unknown: int = 0
    unknown_window_s: float = 600.0
    #: Coupons that one customer may apply, and redeem, in any hour.
    applies_per_hour: int = 0
    redemptions_per_hour: int = 0
    #: Nobody travels faster than this between two redemptions.
    most_km_per_h: float = 0.0


def nowhere(store: StoreId) -> None:
    """No store is known."""


def asker(key: str | None, store: str | None, places: Places) -> str:
    """Whose unknown codes are counted together: those of one API key at one store.

    Stores that aren't known count as one: a made-up name for each guess must not be a way around it.
    """
    known = store if store is not None and places(StoreId(store)) is not None else ""
    return hashlib.sha256(f"{key or ''}\x1f{known}".encode("utf-8", "surrogatepass")).hexdigest()[:32]
