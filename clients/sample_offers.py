"""The sample retailer's promotions: one of each kind that nearcast knows, in English and German.

Data, not logic. A customer sees each promotion once in `_AGAIN_S`: a chain would say once a day, the demo lives
faster.
"""

from collections.abc import Mapping, Sequence

from nearcast.world import Budget, Cap, Discount, Promotion, What, When, Where, Who, Words

_AGAIN_S = 60
#: From so many loyalty points on there is a special.
POINTS_MARK = 100
_CAPS = [Cap(count=1, period_s=_AGAIN_S)]
#: How many of a department's best-selling segments are promoted at the shelf, and in how deep an offer.
_PROMOTED_SEGMENTS = 5


def promotions_for(segments: Mapping[str, Sequence[str]], fences: Mapping[str, Sequence[str]]) -> tuple[Promotion, ...]:
    """All promotions. `segments` (best-selling first) and `fences` are by department name."""
    return (
        _cart_nearby(),
        _cart_elsewhere(),
        _welcome(),
        _points(),
        _order_on_its_way(),
        _something_else(segments),
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
        in_quiet_hours="hold",
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


def _cart_elsewhere() -> Promotion:
    return Promotion(
        id="cart-elsewhere",
        name="Left in the online cart, sold out here, in stock at another shop",
        trigger="walk_past",
        who=Who(in_cart=True),
        what=What(discount=Discount(percent=15), instead="elsewhere", within_m=2_000),
        value_cents=400,
        deadline_s=120,
        caps=_CAPS,
        words={
            "en": Words(
                title="{{ product }}: gone here, there at {{ store }}",
                body="{{ store }} has it, with {{ discount }} off for the detour.",
            ),
            "de": Words(
                title="{{ product }}: hier aus, bei {{ store }} da",
                body="In der Filiale {{ store }} liegt es bereit, für den Umweg {{ discount }} günstiger.",
            ),
        },
    )


def _something_else(segments: Mapping[str, Sequence[str]]) -> Promotion:
    return Promotion(
        id="shelf-alternative",
        name="Sold out at the shelf: something like it",
        trigger="near_product",
        what=What(
            segments=[segment for ranked in segments.values() for segment in ranked[:_PROMOTED_SEGMENTS]],
            discount=Discount(percent=10, most_cents=200),
            instead="alternative",
        ),
        value_cents=100,
        deadline_s=45,
        caps=_CAPS,
        budgets=[Budget(cents=20_000, per="store", period="day")],
        words={
            "en": Words(title="Sold out? Try {{ product }}", body="{{ discount }} off, since the shelf is empty."),
            "de": Words(
                title="Ausverkauft? Wie wäre {{ product }}", body="{{ discount }} günstiger, weil das Regal leer ist."
            ),
        },
    )


def _points() -> Promotion:
    return Promotion(
        id="points-reached",
        name="A flash special for loyal customers",
        trigger="points_reached",
        who=Who(min_points=POINTS_MARK),
        what=What(discount=Discount(amount_cents=300)),
        value_cents=200,
        deadline_s=120,
        budgets=[Budget(pieces=500)],
        caps=_CAPS,
        words={
            "en": Words(title="Thank you: {{ discount }} for your points", body="Good for your next purchase today."),
            "de": Words(title="Danke: {{ discount }} für Ihre Punkte", body="Für Ihren nächsten Einkauf, noch heute."),
        },
    )


def _order_on_its_way() -> Promotion:
    return Promotion(
        id="order-shipped",
        name="An online order is on its way",
        trigger="order_status",
        kind="notice",
        when=When(statuses=["shipped"]),
        deadline_s=120,
        caps=[],
        channels=["websocket"],
        words={
            "en": Words(title="Order {{ order }} is on its way"),
            "de": Words(title="Bestellung {{ order }} ist unterwegs"),
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
        budgets=[Budget(pieces=60, per="store", period="day")],
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
