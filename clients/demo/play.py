"""The time in which the shoppers walk, and everybody reacts to what they get.

One `TaskGroup` owns every task of the play, so a failure in one of them ends it with that failure. At the end the
walking stops first; then whatever is on the way gets a moment to arrive before the counters are read.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable
from itertools import count
from typing import NamedTuple

from clients.client import Nearcast
from clients.demo import live
from clients.demo.cast import PHONES, Person
from clients.demo.child import Child
from clients.demo.mailbox import Mail
from clients.demo.measure import Measure
from clients.demo.outlets import Outlets
from clients.demo.shoppers import Habits, Hands
from clients.demo.smsbox import Sms
from clients.demo.stage import Stage
from clients.demo.till import Till
from clients.demo.whynot import WhyNot
from clients.device import Device
from clients.simulator import Simulation
from nearcast.errors import Unavailable
from nearcast.events import Action, Profile, Purchase
from nearcast.messages import Push

_STEP_S = 0.1
_SHOW_S = 0.25
_PROGRESS_S = 5.0
#: How often an online order goes on its way.
_SHIP_S = 5.0
_POINTS_PER_ITEM = 5
_SETTLE_S, _LONGEST_SETTLE_S = 3.0, 30.0
#: Staff leave a visitor of the page the time to claim an alert first.
_VISITOR_CLAIM_S = (12.0, 15.0)


class Keys(NamedTuple):
    """One HTTP client per API key."""

    intake: Nearcast
    pos: Nearcast
    admin: Nearcast


class _Over(Exception):
    """Ends the task group: the play is over."""


class Play:
    """One performance. SMS and e-mail that come in before it starts are an error: nobody has walked yet."""

    def __init__(self, measure: Measure, say: Callable[[str], None], seed: int, *, headless: bool) -> None:
        self._measure = measure
        self._say = say
        self._seed = seed
        self._headless = headless
        self._ticker = live.Ticker()
        self._reachable: dict[str, Person] = {}
        self._hands: Hands | None = None

    def got_sms(self, sms: Sms) -> None:
        if self._hands is not None:
            self._hands.got_link(self._reachable.get(sms.to), self._measure.sms, "sms", sms.body)

    def sms_delivered(self, _: Sms) -> None:
        self._measure.sms.delivered += 1

    def got_mail(self, mail: Mail) -> None:
        self._measure.email.delivered += 1
        if self._hands is not None:
            text = f"{mail.subject}\n{mail.text}"
            self._hands.got_link(self._reachable.get(mail.to), self._measure.email, "email", text)

    async def perform(
        self,
        stage: Stage,
        child: Child,
        keys: Keys,
        seconds: float | None,
        time_lapse: float,
        stopped: asyncio.Event,
        walking: asyncio.Event,
    ) -> None:
        """Walk for `seconds`, or until `stopped` is set; sets `walking` as soon as it goes off."""
        for person in stage.people:
            self._reachable[person.phone] = self._reachable[person.email] = person
        async with contextlib.AsyncExitStack() as stack:
            devices = {
                # The same phone that the page shows.
                person.uid: await stack.enter_async_context(
                    Device(child.gateway_url, child.token(person.uid), device="phone")
                )
                for person in stage.people
                if person.connected
            }
            tablets = {
                shop.store.id: await stack.enter_async_context(
                    Device(
                        child.gateway_url,
                        child.token(f"staff of {shop.store.id}", "staff", (f"staff:{shop.store.id}",)),
                    )
                )
                for shop in stage.retailer.shops
            }
            try:
                async with asyncio.TaskGroup() as tasks:
                    outlets = Outlets(keys.intake, devices, self._measure, tasks)
                    till = Till(keys.pos, self._measure, outlets.hand_over)
                    hands = self._hands = Hands(self._measure, till, self._habits(stage), tasks, self._ticker.tell)
                    stack.push_async_callback(hands.close)
                    self._take_seats(stage, devices, tablets, hands, outlets, tasks)
                    simulation = Simulation(
                        stage.retailer,
                        stage.walks,
                        start_ms=int(time.time() * 1000),
                        seed=self._seed,
                        time_lapse=time_lapse,
                    )
                    walker = tasks.create_task(self._walk(stage, simulation, outlets, till, tasks), name="walk")
                    shipping = tasks.create_task(self._ship(stage, outlets), name="ship")
                    tasks.create_task(self._show(stage, simulation, keys.admin), name="show")
                    tasks.create_task(self._report(), name="report")
                    walking.set()
                    await _until(stopped, seconds)
                    walker.cancel()
                    shipping.cancel()
                    await self._settle(outlets, keys.admin)
                    raise _Over  # noqa: TRY301  (the only way to end a task group from within)
            except* _Over:
                self._hands = None

    def _habits(self, stage: Stage) -> Habits:
        if self._headless:
            return Habits(self._seed)
        played_by_visitors = frozenset(person.uid for person in stage.people[:PHONES])
        return Habits(self._seed, claim_s=_VISITOR_CLAIM_S, hands_off=played_by_visitors)

    def _take_seats(
        self,
        stage: Stage,
        devices: dict[str, Device],
        tablets: dict[str, Device],
        hands: Hands,
        outlets: Outlets,
        tasks: asyncio.TaskGroup,
    ) -> None:
        def contacted(push: Push) -> None:
            uid = self._measure.customer_of(push.event)
            if uid is not None:
                now_ms = int(time.time() * 1000)
                event = Action(
                    id=f"contact-{push.message}", uid=uid, ts=now_ms, action="staff_contact", store=push.store
                )
                tasks.create_task(outlets.hand_over(event), name="staff contact")

        for person in stage.people:
            if person.uid in devices:
                tasks.create_task(hands.hold(person, devices[person.uid]), name=f"phone of {person.uid}")
        for shop in stage.retailer.shops:
            tasks.create_task(
                hands.staff(shop.store.name, tablets[shop.store.id], contacted), name=f"tablet {shop.store.id}"
            )

    async def _walk(
        self, stage: Stage, simulation: Simulation, outlets: Outlets, till: Till, tasks: asyncio.TaskGroup
    ) -> None:
        names = {person.uid: person.name for person in stage.people}

        points = dict.fromkeys(names, 0)

        async def pay(purchase: Purchase) -> None:
            taken = await till.pay(purchase)
            customer = purchase.customer
            points[customer] += _POINTS_PER_ITEM * len(purchase.items)
            now_ms = int(time.time() * 1000)
            balance = Profile(id=f"points-{purchase.event_id}", uid=customer, ts=now_ms, points=points[customer])
            await outlets.hand_over(balance)
            coupons = f", {taken} coupon{'s' if taken > 1 else ''} redeemed" if taken else ""
            self._ticker.tell("till", f"{names[purchase.customer]} pays for {len(purchase.items)} items{coupons}")

        while True:
            for event in simulation.step(max(int(time.time() * 1000) - simulation.now_ms, 0)):
                if isinstance(event, Purchase):
                    tasks.create_task(pay(event), name=f"pay {event.id}")
                else:
                    outlets.put(event)
            await asyncio.sleep(_STEP_S)

    async def _ship(self, stage: Stage, outlets: Outlets) -> None:
        """Online orders of people with the app leave the warehouse, one after the other."""
        people = [person for person in stage.people if person.connected]
        for number in count(1):
            await asyncio.sleep(_SHIP_S)
            person, now_ms = people[number % len(people)], int(time.time() * 1000)
            # Another run on the same data has orders of its own.
            order = f"A-{now_ms % 10_000_000}"
            outlets.put(
                Action(
                    id=f"shipped-{order}-{number}", uid=person.uid, ts=now_ms, action="order_status", order=order,
                    status="shipped",
                )
            )  # fmt: skip

    async def _show(self, stage: Stage, simulation: Simulation, admin: Nearcast) -> None:
        """Feed the page; while the server is away there is no page either."""
        phones = {person.uid: number for number, person in enumerate(stage.people[:PHONES])}
        shows = 0
        footfall: dict[str, object] = {}
        reasons = WhyNot(stage)
        while True:
            with contextlib.suppress(Unavailable):
                await reasons.look(admin)
                if shows % 4 == 0:
                    self._measure.server.read(await admin.metrics())
                    footfall = {shop.store.id: await admin.footfall(shop.store.id) for shop in stage.retailer.shops}
                dots = simulation.dots()
                counters = self._measure.summary()
                # All of it once a second: somebody may have opened the page just now.
                why_not = reasons.shown(self._measure.server.why_not()) if shows % 4 == 0 else None
                await admin.show(live.moving(dots, phones, counters, self._ticker.take(), footfall, why_not))
            shows += 1
            await asyncio.sleep(_SHOW_S)

    async def _report(self) -> None:
        started = time.monotonic()
        while True:
            await asyncio.sleep(_PROGRESS_S)
            measure, latency = self._measure, self._measure.percentiles_ms()
            sent = f"{measure.websocket.sent} app, {measure.sms.sent} SMS, {measure.email.sent} e-mail"
            self._say(
                f"{time.monotonic() - started:4.0f} s  {measure.events_in} events in · pushes {sent} · "
                f"coupons {measure.applied} applied, {measure.redeemed} redeemed · "
                f"event to device p50 {latency['p50']} ms, p99 {latency['p99']} ms"
                + (f" · ERRORS {dict(measure.errors)}" if measure.errors else "")
            )

    async def _settle(self, outlets: Outlets, admin: Nearcast) -> None:
        """Let queues empty and hands finish, then read the counters."""
        loop = asyncio.get_running_loop()
        until = loop.time() + _LONGEST_SETTLE_S
        await asyncio.sleep(_SETTLE_S)
        pushes = self._measure.websocket
        # Many queues, looked at once a run: not worth an event of their own.
        while True:
            self._measure.server.read(await admin.metrics())
            # Timers go on bringing pushes: it ends at a moment at which each that came has been acknowledged.
            if not (outlets.waiting or pushes.sent > pushes.delivered) or loop.time() >= until:
                return
            await asyncio.sleep(_STEP_S)


async def _until(stopped: asyncio.Event, seconds: float | None) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await stopped.wait()
