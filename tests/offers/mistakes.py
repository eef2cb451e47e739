"""One promotion with everything that a promotion can have, and mistakes in it; for every way in to be tried with.

A way in is a file, the HTTP API, or a catalogue topic: what is right is taken as it is, what is wrong is refused with
the same words.
"""

from typing import Any

import msgspec

from nearcast.world import Promotion

EVERYTHING: dict[str, Any] = {
    "id": "everything",
    "name": "Everything",
    "trigger": "order_status",
    "kind": "offer",
    "tags": ["loud"],
    "who": {
        "groups": ["a"],
        "loyalty": ["gold"],
        "in_cart": True,
        "on_wishlist": True,
        "bought": ["coffee"],
        "no_purchase_within_s": 86_400,
        "attributes": {"city": ["Wien", "Graz"]},
        "min_points": 100,
        "consents": ["sms"],
    },
    "where": {"kinds": ["store"]},
    "what": {"discount": {"percent": 15, "most_cents": 500}, "instead": "elsewhere", "within_m": 500},
    "when": {
        "starts_ms": 1_735_689_600_000,
        "ends_ms": 1_767_225_600_000,
        "hours": [{"weekday": 0, "opens": 540, "closes": 1080}],
        "zone": "customer",
        "statuses": ["shipped"],
    },
    "value_cents": 300,
    "cost_cents": 7,
    "holdout": 0.1,
    "experiment": {"name": "words", "from": 0.0, "to": 0.5},
    "deadline_s": 60,
    "coupon_valid_s": 3_600,
    "coupon": {"exclusive": True, "group": "g", "this_store": True, "min_purchase_cents": 2_000},
    "budgets": [{"pieces": 100, "cents": 50_000, "per": "store", "period": "day"}, {"pieces": 3, "per": "customer"}],
    "fall_back_s": 20,
    "in_quiet_hours": "hold",
    "attribution_s": 86_400,
    "caps": [{"count": 2, "period": "week", "channels": ["sms"], "tags": ["loud"]}, {"count": 1, "period_s": 3_600}],
    "channels": ["websocket", "sms"],
    "words": {"en": {"title": "{{ discount }}", "body": "{{ order }}"}, "de": {"title": "Hallo"}},
}
TAKEN = msgspec.convert(EVERYTHING, Promotion)

#: What is changed in it, in which field the mistake is, and what is said of it.
MISTAKES: list[tuple[dict[str, Any], str, str]] = [
    ({"caps": [{"count": 1}]}, "caps[0]", "a cap has either `period_s` (seconds) or `period` (day, week or month)"),
    ({"caps": [{"count": 0, "period": "day"}]}, "caps[0].count", "must be at least 1"),
    ({"caps": [{"count": 1, "period": "year"}]}, "caps[0].period", "'year' is not one of day, month, week"),
    ({"budgets": [{"per": "store"}]}, "budgets[0]", "a budget has `pieces`, `cents`, or both"),
    ({"budgets": [{"peices": 1}]}, "budgets[0]", "`peices` is not a field here; the fields are"),
    ({"what": {"discount": {}}}, "what.discount", "a discount has either `percent` or `amount_cents`"),
    (
        {"what": {"discount": {"percent": 1}, "price_rule": {"most_percent": 5}}},
        "what",
        "`what` has either a `discount` or a `price_rule`",
    ),
    ({"what": {"instead": "there"}}, "what.instead", "'there' is not one of alternative, elsewhere"),
    ({"kind": "notice"}, "", "nobody is held out of alerts and notices: `holdout` belongs to offers"),
    ({"trigger": "enter"}, "", '`when.statuses` belongs to the trigger "order_status"'),
    ({"in_quiet_hours": "wait"}, "in_quiet_hours", "'wait' is not one of drop, hold"),
    ({"fall_back_s": "20"}, "fall_back_s", "must be a number or empty, not text"),
    ({"coupon": {"exclusive": 1}}, "coupon.exclusive", "must be true or false, not a whole number"),
    ({"who": {"attributes": {"city": "Wien"}}}, "who.attributes", "must be a list, not text"),
    ({"tags": [7]}, "tags[0]", "must be text, not a whole number; put it in quotes"),
    ({"words": {"de": {"title": "Hallo"}}}, "", '`words` needs an "en" entry'),
]
