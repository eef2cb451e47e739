"""The demo: starts nearcast as its child, sets the stage, lets shoppers walk, counts what arrives.

It knows nearcast by its wire only. Order: sinks, server, catalogue, people (profiles, consents, history), devices, then
walking until the time is over; then it waits for what is still on the way, reads the counters and takes everything
down again. One `TaskGroup` owns all tasks: a failure in any of them ends the run with that failure.
"""

import asyncio
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, NamedTuple

from clients import history, sample, simulator
from clients.client import Nearcast
from clients.demo import live
from clients.demo.cast import PHONES, Person, people
from clients.demo.child import Child
from clients.demo.mailbox import Mail, Mailbox
from clients.demo.measure import Measure
from clients.demo.outlets import Outlets, hand_over_history
from clients.demo.patience import insist
from clients.demo.shoppers import Habits, Hands
from clients.demo.smsbox import Sms, SmsBox
from clients.demo.till import Till
from clients.device import Device
from nearcast.errors import Unavailable
from nearcast.events import Action, IntakeEvent, Purchase
from nearcast.messages import Push

_READY_S = 60.0
_STEP_S = 0.1
_SHOW_S = 0.25
_PROGRESS_S = 5.0
#: How long the run waits at its end for queues to empty and for hands that are about to open or apply.
_SETTLE_S = 3.0
#: Staff leave a visitor of the page the time to claim an alert first.
_VISITOR_CLAIM_S = (12.0, 15.0)


class Options(NamedTuple):
    folder: Path
    seconds: float | None = None
    headless: bool = False
    shoppers: int = 40
    seed: int = 7
    port: int | None = None
    time_lapse: float = 6.0


class DemoFailed(Exception):
    """The demo can't go on; the message says why."""


class Driver:
    """One run. `run` returns the summary; `stop` ends the walking early, in order."""

    def __init__(self, options: Options, say: Callable[[str], None]) -> None:
        self.measure = Measure()
        self.child: Child | None = None
        self._options = options
        self._say = say
        self._ticker = live.Ticker()
        self._stopped = asyncio.Event()
        self._restarting = False
        #: By phone number and by e-mail address.
        self._reachable: dict[str, Person] = {}
        self._hands: Hands | None = None

    def stop(self) -> None:
        self._stopped.set()

    async def restart_server(self) -> None:
        """SIGKILL the server in the middle of its work and start it again on the same data and ports."""
        child = self._server()
        self._restarting = True
        await child.kill()
        await child.start()
        self._restarting = False
        async with Nearcast(child.api_url, child.key("admin")) as admin:
            await self._until_ready(admin, child)

    async def run(self) -> dict[str, Any]:
        async with AsyncExitStack() as stack:
            smsbox, mailbox = await self._open_sinks(stack)
            child = self.child = Child(self._options.folder, self._options.port, smsbox.url, mailbox.port)
            smsbox.expect(child.sms_account, child.sms_auth_token)
            stack.push_async_callback(child.stop)
            await child.start()
            intake, pos, admin = [
                await stack.enter_async_context(Nearcast(child.api_url, child.key(role)))
                for role in ("intake", "pos", "admin")
            ]
            await self._until_ready(admin, child)
            retailer, cast, walks = await asyncio.to_thread(self._prepare)
            await self._set_stage(child, admin, intake, retailer, cast)
            self._say(f"Open {child.api_url}/demo/")
            try:
                async with asyncio.TaskGroup() as tasks:
                    play = _Play(self, child, intake, pos, admin, retailer, cast, tasks)
                    await play.perform(walks)
            except* DemoFailed as failures:
                raise failures.exceptions[0] from None
            return self.measure.summary()

    async def _open_sinks(self, stack: AsyncExitStack) -> tuple[SmsBox, Mailbox]:
        def delivered(_: Sms) -> None:
            self.measure.sms.delivered += 1

        smsbox = await stack.enter_async_context(SmsBox(self._sms, delivered))
        return smsbox, await stack.enter_async_context(Mailbox(self._mail))

    def _sms(self, sms: Sms) -> None:
        if self._hands is not None:
            self._hands.got_link(self._reachable.get(sms.to), self.measure.sms, "sms", sms.body)

    def _mail(self, mail: Mail) -> None:
        self.measure.email.delivered += 1
        if self._hands is not None:
            text = f"{mail.subject}\n{mail.text}"
            self._hands.got_link(self._reachable.get(mail.to), self.measure.email, "email", text)

    def _prepare(self) -> tuple[sample.Retailer, list[Person], list[simulator.Walk]]:
        """Read the real purchases and build the city around them."""
        options = self._options
        told = history.load(options.shoppers, options.seed, int(time.time() * 1000))
        wanted = [line.sku for number in range(history.TODAY) for household in told.households
                  for line in household.today[number].lines[:8]]  # fmt: skip
        retailer = sample.build(told.items, wanted, options.seed)
        return retailer, people(told.households, options.seed), simulator.plan(retailer, told.households, options.seed)

    async def _set_stage(
        self, child: Child, admin: Nearcast, intake: Nearcast, retailer: sample.Retailer, cast: list[Person]
    ) -> None:
        for document in retailer.documents():
            await insist(lambda document=document: admin.put_catalogue(document))
        now_ms = int(time.time() * 1000)
        signups: list[IntakeEvent] = []
        for person in cast:
            signups += [person.profile(now_ms), *person.consents(now_ms)]
            self._reachable[person.phone] = self._reachable[person.email] = person
        receipt = await insist(lambda: intake.events(signups))
        self.measure.events_in += receipt.accepted
        for person in cast:
            if person.reach == "opted out":
                await insist(lambda person=person: admin.set_consent(person.uid, "all", granted=False))
        past = [
            history.purchase(person.household, basket, None) for person in cast for basket in person.household.past
        ]
        told = await hand_over_history(intake, history.batches_of(past), self.measure)
        await admin.put_scene(live.scene(retailer, cast, self.staff_store(retailer), child.gateway_url))
        self._say(
            f"{len(retailer.shops)} shops, {len(retailer.products)} products, {len(retailer.promotions)} promotions; "
            f"{len(cast)} shoppers with {told} past purchases"
        )

    def staff_store(self, retailer: sample.Retailer) -> str:
        """The shop whose staff tablet the page shows."""
        return str(retailer.shops[0].store.id)

    async def _until_ready(self, admin: Nearcast, child: Child) -> None:
        ended = asyncio.create_task(child.wait(), name="server ended early")
        try:
            async with asyncio.timeout(_READY_S):
                while not await admin.ready():
                    if ended.done():
                        raise DemoFailed(f"nearcast ended with exit code {ended.result()}:\n{child.log_tail()}")
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise DemoFailed(f"nearcast was not ready within {_READY_S:.0f} s:\n{child.log_tail()}") from None
        finally:
            ended.cancel()

    def _server(self) -> Child:
        if self.child is None:
            raise RuntimeError("the demo is not running")
        return self.child
