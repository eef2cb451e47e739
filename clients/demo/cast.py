"""Who the households are in the demo: names, contact points, loyalty, consents, and how they can be reached.

The purchases are real, the people are not: names are made up, numbers and addresses belong to nobody. Every tenth
shopper has opted out of everything, others allow only one channel, some have the app closed; the first three are the
people whose phones the page shows.
"""

import random
from collections.abc import Sequence
from typing import Literal, NamedTuple

from clients.history import Household
from nearcast.events import Consent, ConsentScope, Profile

PHONES = 3
_NAMES = (
    "Anna", "Jonas", "Miriam", "Elif", "Lukas", "Sofia", "David", "Marie", "Felix", "Nora", "Paul", "Lena", "Emil",
    "Clara", "Milan", "Ida", "Noah", "Eva", "Simon", "Laura", "Tobias", "Hannah", "Ivan", "Amira", "Georg", "Helene",
    "Samuel", "Vera", "Oskar", "Livia", "Mateo", "Greta", "Viktor", "Alma", "Adam", "Rosa", "Konrad", "Zoe", "Leo",
    "Ada",
)  # fmt: skip
Reach = Literal["app", "app closed", "sms", "email", "opted out"]


class Person(NamedTuple):
    uid: str
    name: str
    phone: str
    email: str
    locale: str
    loyalty: str
    reach: Reach
    household: Household

    @property
    def connected(self) -> bool:
        """Their app holds a connection. Those who opted out have the app too: it must stay silent."""
        return self.reach in ("app", "opted out")

    def profile(self, ts: int) -> Profile:
        return Profile(
            id=f"profile-{self.uid}-{ts}",
            uid=self.uid,
            ts=ts,
            name=self.name,
            email=self.email,
            phone=self.phone,
            locale=self.locale,
            loyalty=self.loyalty,
            time_zone="Europe/Vienna",
        )

    def consents(self, ts: int) -> list[Consent]:
        """What they agreed to at sign-up. Those who opt out had agreed to everything before."""
        scopes: tuple[ConsentScope, ...] = ("location", "websocket", "sms", "email")
        if self.reach in ("sms", "email"):
            scopes = ("location", self.reach)
        return [
            Consent(id=f"consent-{self.uid}-{scope}-{ts}", uid=self.uid, ts=ts, scope=scope, granted=True)
            for scope in scopes
        ]


def people(households: Sequence[Household], seed: int) -> list[Person]:
    """One person per household, in their order."""
    rng = random.Random(f"{seed}:people")
    names = list(_NAMES)
    cast = []
    for index, household in enumerate(households):
        name = (
            names[index % len(names)]
            if index < len(names)
            else f"{names[index % len(names)]} {index // len(names) + 1}"
        )
        cast.append(
            Person(
                uid=household.uid,
                name=name,
                phone=f"+4366055{index:05d}",
                email=f"{name.lower().replace(' ', '.')}.{household.uid}@example.com",
                locale="en" if index < PHONES or rng.random() < 0.4 else "de-AT",
                loyalty=("gold", "silver", "bronze")[index % 3],
                reach=_reach(index),
                household=household,
            )
        )
    return cast


def _reach(index: int) -> Reach:
    if index < PHONES:
        return "app"
    kinds: dict[int, Reach] = {4: "opted out", 5: "app closed", 7: "sms", 9: "email"}
    return kinds.get(index % 10, "app")
