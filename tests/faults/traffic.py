"""What customers do in the rig's town, made from a seed: the same seed and start give the same records.

Each customer does things of one kind, on one topic, after a sign-up; so the outcome depends on no order that the log
does not promise. Those with an offer to come stay where they are, since an offer to someone who left is not sent.
"""

import random
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from nearcast import topics
from nearcast.events import (
    TOPIC_OF,
    Action,
    Cart,
    Consent,
    Event,
    Identify,
    Line,
    Location,
    Profile,
    Purchase,
    encode,
)
from nearcast.fold import FoldRules
from nearcast.ids import partition_of
from nearcast.world import (
    Cap,
    Circle,
    Discount,
    Fence,
    Product,
    Promotion,
    Stock,
    Store,
    Trigger,
    What,
    Where,
    Who,
    Words,
)
from offers.worldfile import WorldFile

PARTITIONS = 4
#: Longer than any recipe lasts, so that a timer set by traffic fires in none of them; but see `_abandoners`.
CART_ABANDONED_AFTER_S = 1_500
RULES = FoldRules(cart_abandoned_after_ms=CART_ABANDONED_AFTER_S * 1000)

_LAT, _LNG, _METRE = 48.2086, 16.37, 1 / 111_195
_DAY_S = 86_400.0


def _offer(
    name: str, trigger: Trigger, *, where: Where | None = None, who: Who | None = None, what: What | None = None
) -> Promotion:
    return Promotion(
        id=name,
        name=name,
        trigger=trigger,
        where=where or Where(),
        who=who or Who(),
        what=what or What(),
        deadline_s=_DAY_S,
        coupon_valid_s=_DAY_S,
        channels=["sms"],
        caps=[Cap(count=2, period_s=86_400)],
        words={"en": Words(title=f"{name}: {{{{ discount }}}} off", body="{{ product }}")},
    )


_BEANS = What(skus=["beans"], discount=Discount(percent=15))
#: Nobody is in sight long enough to dwell, so that no timer of presence decides anything.
WORLD = WorldFile(
    stores=[Store(id="graben", name="Graben", lat=_LAT, lng=_LNG)],
    fences=[
        Fence(id="near", store="graben", kind="vicinity", geometry=Circle((_LNG, _LAT), 120.0), dwell_s=_DAY_S),
        Fence(
            id="in", store="graben", kind="store", parent="near", geometry=Circle((_LNG, _LAT), 40.0), dwell_s=_DAY_S
        ),
    ],
    products=[
        Product(sku="beans", name="Beans", segment="coffee", price_cents=1_299),
        Product(sku="grinder", name="Grinder", segment="kitchen", price_cents=8_900),
    ],
    promotions=[
        _offer("near", "walk_past", what=_BEANS),
        _offer("welcome", "enter", where=Where(kinds=["store"]), what=_BEANS),
        _offer("gold", "enter", where=Where(kinds=["store"]), who=Who(loyalty=["gold"])),
        _offer("scan", "qr_scan", what=_BEANS),
        _offer("cart", "cart_abandoned", what=_BEANS),
    ],
    stock=[Stock(store="graben", sku="beans", quantity=1_000_000)],
)


class Sent(NamedTuple):
    """A record for the driver to produce."""

    topic: str
    partition: int
    key: str
    value: bytes


class Round:
    """One group of customers, `of_each` of every kind, `steps` events of each; `name` keeps their ids apart.

    Produce `sign_up`, wait until that is worked off, then `traffic`.
    """

    def __init__(self, seed: int, name: str, now_ms: int, *, of_each: int = 4, steps: int = 8) -> None:
        self._chance = random.Random(f"{seed} {name}")
        self._name = name
        self._number = self._chance.randrange(10**6)
        # Times run from a minute ago up to now: late for nobody, in the future for nobody.
        self._start_ms = now_ms - 60_000
        self._step_ms = 60_000 // (steps + 1)
        self._steps = steps
        self._of_each = of_each
        self.sign_up: list[Sent] = []
        queues = [self._walker(n) for n in range(2 * of_each)] + [
            make(n)
            for make in (self._passer, self._buyer, self._carter, self._abandoner, self._scanner, self._visitor)
            for n in range(of_each)
        ]
        queues.append(self._nonsense())
        self.traffic = list(_shuffled(queues, self._chance))

    def _walker(self, n: int) -> list[Sent]:
        """Comes from outside, walks past, goes in and stays: two offers."""
        uid = self._customer("walker", n)
        distances = [400.0, 90.0, 10.0] + [self._chance.uniform(0, 15) for _ in range(self._steps)]
        fixes = [self._fix(uid, step, metres) for step, metres in enumerate(distances[: self._steps])]
        # A phone that sends again what it is not sure of, and one fix that comes too late to be of use.
        return [*fixes, fixes[-1], fixes[0]]

    def _passer(self, n: int) -> list[Sent]:
        """In and out all day, and never agreed to a message."""
        uid = f"{self._name}-passer-{n}"
        return [self._fix(uid, step, self._chance.choice([20.0, 80.0, 500.0])) for step in range(self._steps)]

    def _buyer(self, n: int) -> list[Sent]:
        uid = f"{self._name}-buyer-{n}"
        bought = []
        for step in range(self._steps):
            skus = self._chance.sample(["beans", "grinder", "cup", "milk"], self._chance.randint(1, 3))
            lines = [Line(sku=sku, amount_cents=self._chance.randrange(100, 9_000)) for sku in skus]
            event = Purchase(id=f"{uid}-{step}", uid=uid, ts=self._at(step), store="graben", items=lines)
            bought += [_sent(event)] * self._chance.choice([1, 1, 1, 2])
        return bought

    def _carter(self, n: int) -> list[Sent]:
        uid = f"{self._name}-carter-{n}"
        changes: list[Event] = []
        for step in range(self._steps):
            action = self._chance.choice(["add", "add", "add", "set", "remove"])
            sku = self._chance.choice(["beans", "grinder", "cup"])
            quantity = self._chance.randint(1, 5)
            changes.append(
                Cart(id=f"{uid}-{step}", uid=uid, ts=self._at(step), action=action, sku=sku, quantity=quantity)  # type: ignore[arg-type]
            )
        return [_sent(event) for event in changes]

    def _abandoner(self, n: int) -> list[Sent]:
        """Put something into the cart so long ago that its timer is due at once: an offer."""
        uid = self._customer("abandoner", n)
        at_ms = self._start_ms - CART_ABANDONED_AFTER_S * 1000
        return [_sent(Cart(id=f"{uid}-0", uid=uid, ts=at_ms, action="add", sku="beans"))]

    def _scanner(self, n: int) -> list[Sent]:
        """Looks at things and scans codes: two offers, then the cap holds."""
        uid = self._customer("scanner", n)
        actions = ["qr_scan", "product_view", "qr_scan", "wishlist_add", "qr_scan", "wishlist_remove"]
        return [
            _sent(Action(id=f"{uid}-{step}", uid=uid, ts=self._at(step), action=action, sku="beans", store="graben"))  # type: ignore[arg-type]
            for step, action in enumerate(actions[: self._steps])
        ]

    def _visitor(self, n: int) -> list[Sent]:
        """Anonymous until they sign in as a customer who does nothing else."""
        name, uid = f"{self._name}-visitor-{n}", f"{self._name}-known-{n}"
        views = [
            Action(id=f"{name}-{step}", anonymous_id=name, ts=self._at(step), action="product_view", sku=sku)
            for step, sku in enumerate(["beans", "grinder", "cup"])
        ]
        sign_in = Identify(id=f"{name}-in", anonymous_id=name, uid=uid, ts=self._at(self._steps))
        return [_sent(event) for event in [*views, sign_in]]

    def _nonsense(self) -> list[Sent]:
        """What can only become a dead letter."""
        found = []
        for n in range(self._of_each):
            uid = f"{self._name}-nobody-{n}"
            home = partition_of(uid, PARTITIONS)
            elsewhere = (home + 1) % PARTITIONS
            found += [
                Sent(topics.PURCHASES, home, uid, b'{"uid": "cut off'),
                Sent(topics.CARTS, home, uid, b'{"uid": "%s", "action": "add"}' % uid.encode()),
                Sent(topics.ACTIONS, elsewhere, uid, encode(Action(uid=uid, ts=self._at(0), action="app_open"))),
            ]
        return found

    def _customer(self, kind: str, n: int) -> str:
        uid = f"{self._name}-{kind}-{n}"
        # Seven digits from the number of the round, so that every customer of a run has a phone of their own.
        phone = f"+4366{partition_of(self._name, 10**5):05}{len(self.sign_up):04}"
        self.sign_up += [
            _sent(Profile(id=f"{uid}-p", uid=uid, ts=self._start_ms, phone=phone)),
            _sent(Consent(id=f"{uid}-c", uid=uid, ts=self._start_ms, scope="sms", granted=True)),
        ]
        return uid

    def _fix(self, uid: str, step: int, metres: float) -> Sent:
        return _sent(
            Location(
                id=f"{uid}-{step}", uid=uid, ts=self._at(step), lat=_LAT + metres * _METRE, lng=_LNG, accuracy_m=5.0
            )
        )

    def _at(self, step: int) -> int:
        return self._start_ms + (step + 1) * self._step_ms


def _sent(event: Event) -> Sent:
    return Sent(TOPIC_OF[type(event)], partition_of(event.customer, PARTITIONS), event.customer, encode(event))


def _shuffled(queues: Iterable[Sequence[Sent]], chance: random.Random) -> Iterator[Sent]:
    """All of the queues' records, each queue's in its order."""
    left = [iter(queue) for queue in queues]
    order = [n for n, queue in enumerate(queues) for _ in queue]
    chance.shuffle(order)
    return (next(left[n]) for n in order)
