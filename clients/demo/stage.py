"""Before the shoppers walk: the retailer and its customers, prepared here and told to nearcast."""

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from clients import history, sample, simulator
from clients.client import Nearcast
from clients.demo import live
from clients.demo.cast import Person, people
from clients.demo.measure import Measure
from clients.demo.patience import insist
from nearcast.events import IntakeEvent


class Stage(NamedTuple):
    """The shop's world, the people, and their ways."""

    retailer: sample.Retailer
    people: list[Person]
    walks: list[simulator.Walk]

    @property
    def staffed_store(self) -> str:
        """The shop whose staff tablet the page shows."""
        return str(self.retailer.shops[0].store.id)


def prepare(shoppers: int, seed: int) -> Stage:
    """Read the real purchases (seconds of work) and build the city around them."""
    told = history.load(shoppers, seed, int(time.time() * 1000))
    wanted = [
        line.sku
        for number in range(history.TODAY)
        for household in told.households
        for line in household.today[number].lines[:8]
    ]
    retailer = sample.build(told.items, wanted, seed)
    return Stage(retailer, people(told.households, seed), simulator.plan(retailer, told.households, seed))


async def set_up(
    stage: Stage, intake: Nearcast, admin: Nearcast, measure: Measure, gateway_url: str, say: Callable[[str], None]
) -> None:
    """Tell nearcast all of it."""
    for document in stage.retailer.documents():
        await insist(admin.put_catalogue, document)
    now_ms = int(time.time() * 1000)
    signups: list[IntakeEvent] = []
    for person in stage.people:
        signups += [person.profile(now_ms), *person.consents(now_ms)]
    purchases = [
        history.purchase(person.household, basket, None) for person in stage.people for basket in person.household.past
    ]
    await _tell(intake, signups, measure)
    for batch in history.batches_of(purchases):
        await _tell(intake, batch, measure)
    for person in stage.people:
        if person.reach == "opted out":
            await insist(admin.set_consent, person.uid, "all", granted=False)
    await admin.put_scene(live.scene(stage.retailer, stage.people, stage.staffed_store, gateway_url))
    retailer = stage.retailer
    say(
        f"{len(retailer.shops)} shops, {len(retailer.products)} products, {len(retailer.promotions)} promotions; "
        f"{len(stage.people)} shoppers with {len(purchases)} past purchases"
    )


async def _tell(intake: Nearcast, batch: Sequence[IntakeEvent], measure: Measure) -> None:
    receipt = await insist(intake.events, batch)
    measure.events_in += receipt.accepted
    for rejected in receipt.rejected:
        measure.errors[f"event_{rejected.reason}"] += 1
