"""What people and staff do with what they get: devices that acknowledge, hands that open, apply and claim.

One reader task per device. Reactions run as tasks of their own, so a slow hand never delays an acknowledgement; all of
them belong to the `TaskGroup` given, and stop with it. Choices are seeded per message, so they don't depend on timing.
"""

import asyncio
import random
import re
from collections.abc import Callable
from typing import NamedTuple

import httpx

from clients.demo.cast import Person
from clients.demo.measure import Measure, Reached
from clients.demo.patience import insist
from clients.demo.till import Till
from clients.device import Device, Refused
from nearcast.errors import Unavailable
from nearcast.messages import Push

_OPENS, _APPLIES = 0.85, 0.65
_CODE = re.compile(r'id="code"[^>]*>([0-9A-Z-]+)<')
LINK = re.compile(r"https?://\S+/m/[\w-]+")

Tell = Callable[[str, str], None]


class Habits(NamedTuple):
    """How quick people are, in seconds from ... to. A visitor of the page plays `hands_off`."""

    seed: int
    open_s: tuple[float, float] = (0.8, 2.5)
    apply_s: tuple[float, float] = (0.6, 1.5)
    claim_s: tuple[float, float] = (1.0, 3.0)
    hands_off: frozenset[str] = frozenset()


class Hands:
    """Reads, opens and applies for everybody."""

    def __init__(self, measure: Measure, till: Till, habits: Habits, tasks: asyncio.TaskGroup, tell: Tell) -> None:
        self._measure, self._till, self._habits = measure, till, habits
        self._tasks = tasks
        self._tell = tell
        self._http = httpx.AsyncClient(timeout=5.0, trust_env=False)
        self._read: set[tuple[str, str]] = set()

    async def close(self) -> None:
        await self._http.aclose()

    async def hold(self, person: Person, device: Device) -> None:
        """Be this person with the phone in their hand, until the device is closed."""
        async for push in device:
            if not self._measure.received(person.uid, push.message, push.event):
                continue
            if person.reach == "opted out":
                self._measure.errors["push_to_opted_out"] += 1
            await self._acknowledge(device, push)
            if push.kind == "offer":
                self._tell("push", f"{person.name}: {push.title}")
                if person.uid not in self._habits.hands_off:
                    self._tasks.create_task(self._look(person, device, push), name=f"look {push.message}")

    async def staff(self, store_name: str, device: Device, contacted: Callable[[Push], None]) -> None:
        """Be the staff of one store with a tablet."""
        async for push in device:
            if not self._measure.received(f"staff {store_name}", push.message, push.event):
                continue
            await self._acknowledge(device, push)
            if push.kind == "assist":
                self._tell("assist", f"{store_name}: {push.title}{f', {push.fence_name}' if push.fence_name else ''}")
                self._tasks.create_task(self._claim(store_name, device, push, contacted), name=f"claim {push.message}")

    def got_link(self, person: Person | None, channel: Reached, kind: str, text: str) -> None:
        """An SMS or e-mail came in: count it, and perhaps open its link."""
        channel.sent += 1
        if person is None:
            self._measure.errors[f"{kind}_to_nobody"] += 1
            return
        if person.reach == "opted out":
            self._measure.errors[f"{kind}_to_opted_out"] += 1
        found = LINK.search(text)
        if found is None:
            self._measure.errors[f"{kind}_without_link"] += 1
            return
        if (person.uid, found[0]) in self._read:
            self._measure.duplicates[kind] += 1
            return
        self._read.add((person.uid, found[0]))
        self._tell(kind, f"{person.name}: {text.splitlines()[0][:80].split(' http')[0]}")
        self._tasks.create_task(self._follow(person, channel, found[0]), name=f"{kind} link")

    async def _acknowledge(self, device: Device, push: Push) -> None:
        try:
            await insist(device.ack, push)
        except Refused as refusal:
            self._measure.errors[f"ack_{refusal.reason}"] += 1
        except Unavailable:
            self._measure.errors["ack_unavailable"] += 1
        else:
            self._measure.websocket.delivered += 1

    async def _look(self, person: Person, device: Device, push: Push) -> None:
        rng = random.Random(f"{self._habits.seed}:{person.uid}:{push.promotion}")
        if rng.random() > _OPENS:
            return
        await asyncio.sleep(rng.uniform(*self._habits.open_s))
        try:
            await insist(device.open, push)
            self._measure.websocket.opened += 1
            if rng.random() > _APPLIES:
                return
            await asyncio.sleep(rng.uniform(*self._habits.apply_s))
            coupon = await insist(device.apply, push)
        except Refused as refusal:
            # People who wait find an offer taken back: they left, or were served.
            if refusal.reason != "offer_recalled":
                self._measure.errors[f"open_or_apply_{refusal.reason}"] += 1
        except Unavailable:
            self._measure.errors["open_or_apply_unavailable"] += 1
        else:
            self._measure.applied += 1
            self._till.show(person.uid, coupon.code)

    async def _claim(self, store_name: str, device: Device, push: Push, contacted: Callable[[Push], None]) -> None:
        rng = random.Random(f"{self._habits.seed}:{push.event}")
        await asyncio.sleep(rng.uniform(*self._habits.claim_s))
        try:
            claim = await insist(device.claim, push)
        except Refused as refusal:
            self._measure.errors[f"claim_{refusal.reason}"] += 1
        except Unavailable:
            self._measure.errors["claim_unavailable"] += 1
        else:
            self._measure.claims += 1
            if claim.won:
                self._tell("assist", f"{store_name}: staff is on the way")
                contacted(push)

    async def _follow(self, person: Person, channel: Reached, link: str) -> None:
        """Open the message's page, and apply there."""
        rng = random.Random(f"{self._habits.seed}:{person.uid}:{channel.sent}")
        if rng.random() > _OPENS:
            return
        await asyncio.sleep(rng.uniform(*self._habits.open_s))
        try:
            page = await insist(self._fetch, "GET", link)
            if page is None:
                return
            # What the page's own script does once somebody has looked at it.
            await insist(self._fetch, "POST", f"{link}/opened")
            channel.opened += 1
            if rng.random() > _APPLIES:
                return
            await asyncio.sleep(rng.uniform(*self._habits.apply_s))
            page = await insist(self._fetch, "POST", link)
        except Unavailable:
            self._measure.errors["page_unavailable"] += 1
            return
        code = _CODE.search(page) if page else None
        if code is not None:
            self._measure.applied += 1
            self._till.show(person.uid, code[1].replace("-", ""))

    async def _fetch(self, method: str, link: str) -> str | None:
        """The page; None if the offer is over by now, which happens to people who wait."""
        try:
            answer = await self._http.request(method, link)
        except httpx.HTTPError as error:
            raise Unavailable(f"{type(error).__name__}") from error
        if answer.status_code >= 500:
            raise Unavailable(f"HTTP {answer.status_code}")
        if answer.status_code == 410:
            return None
        if answer.status_code not in (200, 204):
            self._measure.errors[f"page_http_{answer.status_code}"] += 1
            return None
        return answer.text
