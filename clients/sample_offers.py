"""The sample retailer's promotions: one of each kind that nearcast knows, in English and German.

Data, not logic. A customer sees each promotion once in `_AGAIN_S`: a chain would say once a day, the demo lives
faster.
"""

from collections.abc import Mapping, Sequence

from nearcast.world import Cap, Discount, Promotion, What, Where, Who, Words

_AGAIN_S = 60
_CAPS = [Cap(count=1, period_s=_AGAIN_S)]
#: How many of a department's best-selling segments are promoted at the shelf, and in how deep an offer.
_PROMOTED_SEGMENTS = 5


def promotions_for(segments: Mapping[str, Sequence[str]], fences: Mapping[str, Sequence[str]]) -> tuple[Promotion, ...]:
    """All promotions. `segments` (best-selling first) and `fences` are by department name."""
    return (
        _cart_nearby(),
        _welcome(),
        *(_at_the_shelf(name, list(ranked[:_PROMOTED_SEGMENTS])) for name, ranked in segments.items() if ranked),
        *(_while_browsing(name, list(segments[name]), list(ids)) for name, ids in fences.items() if segments[name]),
        _help(),
    )


def _cart_nearby() -> Promotion:
    return Promotion(
        id="cart-nearby",
        name="Left in the online cart, in stock around the corner",
        trigger="walk_past",
        who=Who(in_cart=True),
        what=What(discount=Discount(percent=15)),
        value_cents=400,
        deadline_s=120,
        caps=_CAPS,
        words={
            "en": Words(
                title="Still in your cart, and right here",
                body="{{ store }} has {{ product }} for you, {{ discount }} off. It is a minute's walk.",
            ),
            "de": Words(
                title="Noch im Warenkorb, und gleich hier",
                body="{{ product }} wartet in der Filiale {{ store }} auf Sie: {{ discount }} günstiger.",
            ),
        },
    )


def _welcome() -> Promotion:
    return Promotion(
        id="welcome-back",
        name="Entry coupon for loyal customers",
        trigger="enter",
        who=Who(loyalty=["gold", "silver"]),
        where=Where(kinds=["store"]),
        what=What(discount=Discount(amount_cents=200)),
        value_cents=150,
        deadline_s=180,
        caps=_CAPS,
        words={
            "en": Words(title="Welcome to {{ store }}", body="Good to see you again: {{ discount }} off today."),
            "de": Words(
                title="Willkommen: {{ store }}", body="Schön, dass Sie da sind: heute {{ discount }} Nachlass."
            ),
        },
    )


def _at_the_shelf(department: str, segments: list[str]) -> Promotion:
    return Promotion(
        id=f"shelf-{_slug(department)}",
        name=f"At the shelf: {department}",
        trigger="near_product",
        what=What(segments=segments, discount=Discount(percent=20)),
        value_cents=120,
        deadline_s=45,
        caps=_CAPS,
        words={
            "en": Words(
                title="{{ discount }} off, right in front of you",
                body="{{ product }}: {{ price }} on the shelf, {{ discount }} less for you.",
            ),
            "de": Words(
                title="{{ discount }} Rabatt, direkt vor Ihnen",
                body="{{ product }}: im Regal {{ price }}, für Sie {{ discount }} weniger.",
            ),
        },
    )


def _while_browsing(department: str, segments: list[str], fences: list[str]) -> Promotion:
    return Promotion(
        id=f"browsing-{_slug(department)}",
        name=f"Taking their time: {department}",
        trigger="dwell",
        where=Where(fences=fences),
        what=What(segments=segments[:10], discount=Discount(percent=10)),
        value_cents=80,
        deadline_s=60,
        caps=_CAPS,
        channels=["websocket"],
        words={
            "en": Words(title="Something for you nearby", body="{{ product }}, {{ discount }} off while you are here."),
            "de": Words(
                title="Etwas für Sie ganz nah", body="{{ product }}: {{ discount }} günstiger, solange Sie da sind."
            ),
        },
    )


def _help() -> Promotion:
    return Promotion(
        id="help-wanted",
        name="A customer asks for help",
        trigger="help_request",
        kind="assist",
        value_cents=500,
        deadline_s=90,
        caps=_CAPS,
        channels=["websocket"],
        words={
            "en": Words(title="Customer asks for help", body="Someone at {{ store }} would like a hand."),
            "de": Words(
                title="Kundin oder Kunde braucht Hilfe", body="In der Filiale {{ store }} braucht jemand Hilfe."
            ),
        },
    )


def _slug(name: str) -> str:
    return name.lower().replace(" & ", "-").replace(" ", "-")
