"""Remarks: what is allowed and hardly meant; and that what is meant gets none."""

from typing import Any

import msgspec
import pytest

from nearcast.world import (
    Budget,
    Circle,
    CouponRules,
    Discount,
    Display,
    Experiment,
    Fence,
    OpenHours,
    PriceRule,
    Product,
    Promotion,
    Store,
    What,
    When,
    Where,
    Who,
    Words,
)
from offers.remarks import promotion_remarks
from offers.worldfile import WorldFile
from tests.offers.examples import NOW_MS, promotion

MONDAYS = [OpenHours(weekday=0, opens=540, closes=1080)]
SUNDAYS = [OpenHours(weekday=6, opens=540, closes=1080)]
HERE = Circle((16.37, 48.2), 20.0)
WORLD = WorldFile(
    stores=[
        Store(id="shop", name="Shop", lat=48.2, lng=16.37, hours=MONDAYS),
        Store(id="kiosk", name="Kiosk", lat=48.2, lng=16.37),
    ],
    fences=[
        Fence(id="street", store="shop", kind="vicinity", geometry=HERE),
        Fence(id="floor", store="shop", kind="store", geometry=HERE, parent="street"),
        Fence(id="camping", store="shop", kind="department", geometry=HERE, parent="floor"),
        Fence(id="door", store="kiosk", kind="store", geometry=HERE, approach_m=50.0),
    ],
    products=[
        Product(sku="tent", name="Tent", segment="camping", displays=[Display(store="shop", lat=48.2, lng=16.37)]),
        Product(sku="boots", name="Boots", segment="shoes"),
    ],
)
TEN = Discount(percent=10)


def remarks(*promotions: Promotion, world: WorldFile = WORLD, personal_prices: bool = False) -> list[str]:
    whole = msgspec.structs.replace(world, promotions=list(promotions))
    return [
        f"{'.'.join(map(str, found.path))}: {found.detail}"
        for found in promotion_remarks(whole, now_ms=NOW_MS, personal_prices=personal_prices)
    ]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"when": When(ends_ms=NOW_MS)}, "when.ends_ms: it is over since 2025-06-15T15:06Z"),
        ({"when": When(ends_ms=1_750_000_000)}, "when.ends_ms: is in milliseconds since 1970"),
        ({"when": When(hours=[])}, "when.hours: an empty list is no hour at all"),
        ({"when": When(hours=SUNDAYS), "where": Where(stores=["shop"])}, "when.hours: none of its stores is open"),
        ({"where": Where(stores=["kiosk"])}, "where: no fence that it fits can have walk_past"),
        ({"trigger": "approach", "where": Where(stores=["shop"])}, "where: no fence that it fits can have approach"),
        ({"trigger": "cross"}, "where: no fence that it fits can have cross"),
        ({"trigger": "enter", "where": Where(kinds=["shelf"])}, "where: no fence that it fits can have enter"),
        ({"trigger": "near_product", "what": What(skus=["boots"])}, "trigger: none of its products is on display"),
        (
            {"trigger": "near_product", "where": Where(stores=["kiosk"])},
            "trigger: none of its products is on display where it holds",
        ),
        ({"trigger": "cart_abandoned", "where": Where(stores=["shop"])}, "where: cart_abandoned happens in no place"),
        (
            {"trigger": "cart_abandoned", "what": What(skus=["tent"], instead="elsewhere")},
            "what.instead: cart_abandoned happens in no store",
        ),
        ({"what": What(instead="alternative")}, "what.instead: it is about no thing in particular"),
        ({"what": What(price_rule=PriceRule(most_percent=5))}, "what.price_rule: NEARCAST_PERSONAL_PRICES is off"),
        ({"kind": "assist", "what": What(discount=TEN)}, "what.discount: an alert to staff carries no coupon"),
        ({"coupon": CouponRules(kind="none"), "what": What(discount=TEN)}, "coupon.kind: without coupons nobody"),
        ({"budgets": [Budget(pieces=0)]}, "budgets.0: a budget of 0 lets nothing through"),
        (
            {"budgets": [Budget(cents=199)], "what": What(discount=Discount(amount_cents=200))},
            "budgets.0.cents: 199 cents are less than one offer may take off (200)",
        ),
        ({"value_cents": 5, "cost_cents": 5}, "value_cents: a redemption brings 5 cents, a message costs 5"),
        ({"holdout": 1.0}, "holdout: everybody is held out"),
        (
            {"what": What(discount=TEN), "coupon_valid_s": 60.0},
            "coupon_valid_s: the coupon is over after 60 s, before the moment is (300 s)",
        ),
        ({"fall_back_s": 300.0}, "fall_back_s: the moment is over after 300 s"),
        (
            {
                "words": {
                    "en": Words(title="{{ product.name }}", body="{{ discount }}"),
                    "de": Words(title="{{product}}"),
                }
            },
            'words.de: does not say `discount`, which "en" says',
        ),
    ],
)
def test_what_is_hardly_meant(fields: dict[str, Any], said: str) -> None:
    """One remark, at its field."""
    (remark,) = remarks(promotion(**fields))
    assert remark.startswith(said)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"when": When(starts_ms=NOW_MS, ends_ms=NOW_MS + 1)},
        {"when": When(hours=SUNDAYS)},  # the kiosk is always open
        {"when": When(hours=SUNDAYS, zone="customer"), "where": Where(stores=["shop"])},
        {"where": Where(fences=["street"])},
        {"trigger": "dwell", "where": Where(fences=["street"], kinds=["department"])},
        {"trigger": "dwell", "where": Where(kinds=["product"])},
        {"trigger": "approach"},
        {"trigger": "near_product", "what": What(segments=["camping"])},
        {"trigger": "near_product", "what": What(instead="alternative")},
        {"what": What(instead="elsewhere"), "who": Who(in_cart=True)},
        {"budgets": [Budget(cents=200)], "what": What(discount=Discount(amount_cents=200))},
        {"kind": "notice", "value_cents": 0, "trigger": "order_ready"},
        {"fall_back_s": 300.0, "channels": ["websocket"]},
        {"fall_back_s": None},
        {"words": {"en": Words(title="Hi"), "de": Words(title="{{ product }}")}},
    ],
)
def test_what_is_meant(fields: dict[str, Any]) -> None:
    """No remark."""
    assert remarks(promotion(**fields)) == []


def test_what_is_not_described_is_not_remarked_on() -> None:
    """Without stores, fences and products in the files nobody knows."""
    unsure = [
        promotion(where=Where(stores=["kiosk"]), when=When(hours=SUNDAYS)),
        promotion(id="other", trigger="near_product", what=What(skus=["boots"])),
    ]
    assert remarks(*unsure, world=WorldFile()) == []


def test_personal_prices_that_are_on() -> None:
    """Then a price rule is as good as any."""
    priced = promotion(what=What(skus=["tent"], price_rule=PriceRule(most_percent=5)))
    assert remarks(priced, personal_prices=True) == []


def test_arms_that_overlap() -> None:
    """Of the same experiment, by ranges that share customers; an arm of several occasions is meant."""

    def arm(name: str, starts: float, ends: float, **fields: Any) -> Promotion:
        return promotion(id=name, experiment=Experiment(name="words", starts=starts, ends=ends), **fields)

    assert remarks(arm("a", 0, 0.5), arm("b", 0.5, 1)) == []
    assert remarks(arm("a", 0, 0.5), arm("b", 0, 0.5, trigger="app_open")) == []
    (told,) = remarks(arm("a", 0, 0.5), arm("b", 0.4, 1, trigger="app_open"))
    assert told == "experiment: its arm of the experiment 'words' overlaps with that of the promotion 'a'"
    assert len(remarks(arm("a", 0, 0.5), arm("b", 0, 0.5), arm("c", 0.5, 1))) == 1
