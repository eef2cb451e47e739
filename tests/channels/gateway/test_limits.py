"""Who may come in, how many at a time, and how they are sent away."""

import asyncio
from dataclasses import dataclass, field

import pytest

from channels.gateway.addresses import Addresses
from channels.gateway.turnstile import Turnstile
from nearcast.clock import ManualClock, SystemClock


@dataclass(eq=False)
class Guest:
    """A newcomer that notes what became of it."""

    fate: list[str] = field(default_factory=list)

    def admit(self) -> None:
        self.fate.append("in")

    def turn_away(self) -> None:
        self.fate.append("away")


def fates(guests: list[Guest]) -> list[str]:
    assert all(len(guest.fate) <= 1 for guest in guests)
    return [guest.fate[0] if guest.fate else "waits" for guest in guests]


async def test_a_storm_queues_and_gets_in_at_the_rate_in_order() -> None:
    """100 a second: five at once, then the others in the order of their coming; who has hung up takes nobody's turn."""
    clock = ManualClock()
    turnstile = Turnstile(100, joins_at_once=64, wait_s=3, room=30, clock=clock)
    guests = [Guest() for _ in range(20)]
    for guest in guests:
        turnstile.enter(guest)
    assert fates(guests) == ["in"] * 5 + ["waits"] * 15
    turnstile.leave(guests[6])
    for passed in range(1, 5):
        clock.advance(11)
        turnstile.turn()
        assert fates(guests).count("in") == 5 + passed
    assert fates(guests) == ["in"] * 6 + ["waits"] + ["in"] * 3 + ["waits"] * 10
    turnstile.close()


async def test_the_queue_moves_on_by_itself() -> None:
    """Nobody has to come or go for those who wait to get their turn."""
    turnstile = Turnstile(100, joins_at_once=64, wait_s=3, room=30, clock=SystemClock())
    guests = [Guest() for _ in range(10)]
    for guest in guests:
        turnstile.enter(guest)
    async with asyncio.timeout(5):
        while "waits" in fates(guests):
            await asyncio.sleep(0.01)
    assert fates(guests) == ["in"] * 10


async def test_nobody_gets_in_while_many_are_joining() -> None:
    """While as many joins as are allowed are under way, newcomers wait; each one that ends lets one in."""
    clock = ManualClock()
    turnstile = Turnstile(1000, joins_at_once=2, wait_s=3, room=30, clock=clock)
    turnstile.join()
    turnstile.join()
    guests = [Guest() for _ in range(3)]
    for guest in guests:
        turnstile.enter(guest)
    clock.advance(1000)
    turnstile.turn()
    assert fates(guests) == ["waits"] * 3
    turnstile.joined()
    assert fates(guests) == ["in"] * 3
    turnstile.close()


async def test_who_would_wait_too_long_is_turned_away() -> None:
    """At once if the queue is as long as its time allows, later if the time is up although it moved too slowly."""
    clock = ManualClock()
    turnstile = Turnstile(10, joins_at_once=1, wait_s=3, room=30, clock=clock)
    turnstile.join()
    guests = [Guest() for _ in range(31)]
    for guest in guests:
        turnstile.enter(guest)
    assert fates(guests) == ["waits"] * 30 + ["away"]
    clock.advance(3000)
    late = Guest()
    turnstile.enter(late)
    turnstile.turn()
    assert fates(guests) == ["away"] * 31
    turnstile.joined()
    assert fates([late]) == ["away"]


async def test_one_newcomer_that_fails_keeps_no_other_out() -> None:
    """Neither those who are let in nor those who are turned away."""

    class Broken(Guest):
        def admit(self) -> None:
            raise RuntimeError("a bug")

        turn_away = admit

    clock = ManualClock()
    turnstile = Turnstile(100, joins_at_once=64, wait_s=3, room=30, clock=clock)
    guests = [Broken(), Guest(), *(Guest() for _ in range(3)), Broken(), Guest()]
    for guest in guests:
        turnstile.enter(guest)
    assert fates(guests[1:5]) == ["in"] * 4
    turnstile.close()
    assert fates(guests[6:]) == ["away"]


async def test_a_closed_turnstile_turns_everybody_away() -> None:
    """Those who wait, and all who still come."""
    turnstile = Turnstile(1000, joins_at_once=1, wait_s=3, room=30, clock=ManualClock())
    turnstile.join()
    waiting, late = Guest(), Guest()
    turnstile.enter(waiting)
    turnstile.close()
    turnstile.enter(late)
    turnstile.joined()
    assert fates([waiting, late]) == ["away", "away"]


def test_an_address_has_only_so_many_connections() -> None:
    """One more is refused until one has left, other addresses are not; nothing is kept of who has left."""
    addresses = Addresses(2)
    assert [addresses.enter("192.0.2.1") for _ in range(3)] == [True, True, False]
    assert addresses.enter("192.0.2.2")
    addresses.leave("192.0.2.1")
    assert addresses.enter("192.0.2.1")
    for address in ("192.0.2.1", "192.0.2.1", "192.0.2.2"):
        addresses.leave(address)
    assert len(addresses) == 0
    unlimited = Addresses(0)
    assert all(unlimited.enter("192.0.2.1") for _ in range(100))


def test_an_ipv6_household_counts_as_one() -> None:
    """Anybody with IPv6 has 2^64 addresses; an IPv4 address is the same however it is written."""
    addresses = Addresses(1)
    assert addresses.enter("2001:db8:1:2:3::1")
    assert not addresses.enter("2001:db8:1:2:ffff::9")
    assert addresses.enter("2001:db8:1:3::1")
    assert addresses.enter("192.0.2.1")
    assert not addresses.enter("::ffff:192.0.2.1")


@pytest.mark.parametrize(
    ("forwarded", "origin"),
    [
        ("203.0.113.9", "203.0.113.9"),
        ("198.51.100.1, 203.0.113.9", "203.0.113.9"),
        ("203.0.113.9, 10.0.0.7", "203.0.113.9"),
        ("203.0.113.9,10.0.0.7 , ::ffff:10.0.0.8", "203.0.113.9"),
        ("10.1.1.1, 10.0.0.7", "10.0.0.1"),
        ("", "10.0.0.1"),
        (" , ", "10.0.0.1"),
        ("203.0.113.9, unknown", "unknown"),
        ("203.0.113.9:5060, 10.0.0.7:443", "203.0.113.9"),
        ("[2001:db8::1]:5060", "2001:db8::1"),
        ("2001:db8::1", "2001:db8::1"),
    ],
)
def test_what_a_proxy_says_is_believed_up_to_the_last_stranger(forwarded: str, origin: str) -> None:
    """Further left stands what the stranger itself may have written."""
    addresses = Addresses(1, ["10.0.0.0/8"])
    assert addresses.is_proxy("10.0.0.1")
    assert addresses.origin("10.0.0.1", forwarded) == origin


def test_nobody_is_a_proxy_unless_named() -> None:
    """Without a list nobody's word counts; what is no network is an error."""
    assert not Addresses(1).is_proxy("127.0.0.1")
    assert not Addresses(1, ["10.0.0.1"]).is_proxy("10.0.0.2")
    assert not Addresses(1, ["10.0.0.1"]).is_proxy("")
    with pytest.raises(ValueError, match="has host bits set"):
        Addresses(1, ["10.0.0.1/8"])
