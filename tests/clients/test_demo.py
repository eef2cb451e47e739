"""The demo's parts: what it counts, who takes part, where mail arrives, and that a dead server is reported."""

import asyncio
import smtplib
from email.message import EmailMessage
from pathlib import Path

import pytest

from clients.client import Nearcast
from clients.demo.cast import PHONES
from clients.demo.child import Child, free_ports
from clients.demo.live import moving, scene
from clients.demo.mailbox import Mail, Mailbox
from clients.demo.measure import Measure, ServerCounters
from clients.demo.outlets import Outlets
from clients.demo.patience import insist
from clients.demo.play import Play
from clients.demo.stage import Stage
from clients.simulator import Dot
from nearcast.errors import Unavailable
from tests.clients.gateway import until
from tests.clients.web import Reply, recording_server


def test_percentiles_are_nearest_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 100 latencies of 1 to 100 ms, p50 is 50, p95 is 95 and p99 is 99; none without any."""
    now = 0.0
    monkeypatch.setattr("clients.demo.measure.time.monotonic", lambda: now)
    measure = Measure()
    assert measure.percentiles_ms() == {"p50": None, "p95": None, "p99": None}
    for latency in range(1, 101):
        measure.handed_over(f"e{latency}", "ann")
    for latency in range(1, 101):
        now = latency / 1000
        assert measure.received("ann", f"m{latency}", f"e{latency}")
    assert measure.percentiles_ms() == {"p50": 50.0, "p95": 95.0, "p99": 99.0}


def test_a_message_twice_on_one_device_is_an_error() -> None:
    """It counts once as sent, and as a duplicate and an error; another device may have it too."""
    measure = Measure()
    assert measure.received("ann", "m1", "e1")
    assert not measure.received("ann", "m1", "e1")
    assert measure.received("ann's tablet", "m1", "e1")
    summary = measure.summary()
    assert summary["pushes"]["websocket"]["sent"] == 2
    assert summary["duplicates"]["websocket"] == 1
    assert summary["errors"] == 1
    assert summary["errors_by_kind"] == {"message_twice_on_one_device": 1}


def test_counters_survive_a_restart() -> None:
    """Samples that fall come from a new process: what the old one had counted stays."""

    def text(offers: int, letters: int) -> str:
        return (
            "# TYPE nearcast_decisions counter\n"
            f'nearcast_decisions_total{{outcome="offer",reason=""}} {offers}\n'
            f'nearcast_decisions_total{{outcome="nothing",reason="capped"}} 2\n'
            f'nearcast_decisions_total{{outcome="nothing",reason="no_consent"}} 1\n'
            "# TYPE nearcast_dead_letters counter\n"
            f'nearcast_dead_letters_total{{reason="malformed_event"}} {letters}\n'
        )

    counters = ServerCounters()
    counters.read(text(5, 1))
    counters.read(text(7, 1))
    assert counters.by_outcome("nearcast_decisions_total") == {"nothing": 3, "offer": 7}
    counters.read(text(2, 0))
    assert counters.by_outcome("nearcast_decisions_total") == {"nothing": 6, "offer": 9}
    assert counters.total("nearcast_dead_letters_total") == 1


def test_the_cast(stage: Stage) -> None:
    """People are reachable in every way, nobody shares a number or address, and somebody has opted out."""
    people = stage.people
    assert {person.reach for person in people} == {"app", "app closed", "sms", "email", "opted out"}
    assert all(person.reach == "app" for person in people[:PHONES])
    assert len({person.phone for person in people}) == len({person.email for person in people}) == len(people)
    assert all(person.email.endswith("@example.com") for person in people)


def test_the_scene(stage: Stage) -> None:
    """The page gets shops, streets, fences as GeoJSON, displays, three phones and a tablet; no contact points."""
    made = scene(stage.retailer, stage.people, stage.staffed_store, "ws://gateway")
    assert len(made["phones"]) == PHONES
    assert made["staff"]["store"] == stage.staffed_store
    kinds = {feature["properties"]["kind"] for feature in made["fences"]["features"]}
    assert kinds == {"vicinity", "store", "department"}
    circle = next(one for one in made["fences"]["features"] if one["geometry"]["type"] == "Point")
    assert circle["properties"]["radius_m"] > 0
    assert not any(person.phone in str(made) or person.email in str(made) for person in stage.people)
    live = moving([Dot("hh-1", 1.0, 2.0), Dot("hh-2", 3.0, 4.0)], {"hh-2": 0}, {}, [])
    assert [dot["phone"] for dot in live["shoppers"]] == [None, 0]


async def test_the_mailbox_takes_mail() -> None:
    """Every recipient's copy is handed on with subject and text."""
    mails: list[Mail] = []
    async with Mailbox(mails.append) as mailbox:
        message = EmailMessage()
        message["Subject"] = "Grüß Gott"
        message.set_content("Ihr Gutschein: http://127.0.0.1/m/abc")

        def send() -> None:
            with smtplib.SMTP("127.0.0.1", mailbox.port) as smtp:
                smtp.send_message(message, "shop@example.com", ["ann@example.com", "bob@example.com"])

        await asyncio.to_thread(send)
        await until(lambda: len(mails) == 2)
    assert [mail.to for mail in mails] == ["ann@example.com", "bob@example.com"]
    assert mails[0].subject == "Grüß Gott"
    assert "http://127.0.0.1/m/abc" in mails[0].text


async def test_the_play_ends_with_nothing_on_its_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """A push that is on a device has been acknowledged when the counters are read; timers go on bringing some."""
    monkeypatch.setattr("clients.demo.play._SETTLE_S", 0.0)
    measure = Measure()
    measure.websocket.sent = 2
    measure.websocket.delivered = 1
    play = Play(measure, lambda _: None, 1, headless=True)
    with recording_server(answer=lambda _: Reply(200, b"", "text/plain")) as server:
        async with Nearcast(server.url, "key") as admin, asyncio.TaskGroup() as tasks:
            outlets = Outlets(admin, {}, measure, tasks)
            settling = asyncio.create_task(play._settle(outlets, admin))
            await until(lambda: len(server.requests) > 2 or settling.done())
            assert not settling.done()
            measure.websocket.delivered = 2
            async with asyncio.timeout(5):
                await settling
            [event_task] = [task for task in asyncio.all_tasks() if task.get_name() == "events by http"]
            event_task.cancel()


async def test_insist_repeats_until_it_works() -> None:
    """What is unavailable is tried again; anything else gets through at once."""
    calls = 0

    async def sometimes(result: str) -> str:
        nonlocal calls
        calls += 1
        if calls < 3:
            raise Unavailable("not yet")
        return result

    assert await insist(sometimes, "done") == "done"

    async def broken() -> None:
        raise ValueError("for good")

    with pytest.raises(ValueError, match="for good"):
        await insist(broken)


def test_free_ports_differ() -> None:
    """Ports asked for together are all different."""
    assert len(set(free_ports(8))) == 8


async def test_a_child_that_was_never_started(tmp_path: Path) -> None:
    """It can be stopped, has no log, and its secrets are in no representation."""
    child = Child(tmp_path, None, ("http://127.0.0.1:1", "AC1", "the-auth-token"), 1)
    await child.stop()
    assert child.log_tail() == ""
    assert "the-auth-token" not in repr(child)
    assert child.key("admin") != child.key("intake")
