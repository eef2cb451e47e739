"""What the demo's page is told of moments that led to nothing, and of messages that were stopped or taken back."""

from typing import Any

import msgspec
import pytest

from clients.client import Nearcast
from clients.demo.measure import ServerCounters
from clients.demo.stage import Stage
from clients.demo.whynot import KEPT, WhyNot
from nearcast.decisions import Candidate, Decision, Reason
from nearcast.errors import Unavailable
from nearcast.ids import CustomerId, DecisionId, EventId, PromotionId, StoreId
from nearcast.moments import Moment
from tests.clients.web import Reply, Request, recording_server


def decision(number: int, customer: str, at_ms: int, reason: Reason | None) -> Decision:
    """Two promotions were candidates; the second one got further, or won."""
    moment = Moment(
        event=EventId(f"e{number}"),
        customer=CustomerId(customer),
        trigger="walk_past",
        at_ms=at_ms,
        subject="",
        store=StoreId("store-1"),
    )
    return Decision(
        id=DecisionId(f"d{number}"),
        moment=moment,
        outcome="nothing" if reason is not None else "offer",
        at_ms=at_ms,
        deadline_ms=at_ms + 1,
        candidates=[
            Candidate(promotion=PromotionId("welcome-back"), stopped_by=Reason.NO_CONSENT),
            Candidate(promotion=PromotionId("cart-nearby"), stopped_by=reason),
        ],
        rules_version="r",
        model_version="m",
        reason=reason,
    )


class Api:
    """The server's answers about customers, as it writes them."""

    def __init__(self) -> None:
        self.decisions: dict[str, list[Decision]] = {}
        self.messages: dict[str, list[dict[str, Any]]] = {}
        self.reasons: dict[str, str] = {}

    def answer(self, request: Request) -> Reply:
        customer, _, rest = request.path.removeprefix("/v1/customers/").partition("/")
        if customer not in self.decisions:
            return Reply(404, msgspec.json.encode({"reason": "unknown_customer"}))
        if rest.startswith("decisions"):
            return Reply(200, msgspec.json.encode({"decisions": self.decisions[customer]}))
        if rest.startswith("messages/"):
            return Reply(200, msgspec.json.encode({"reason": self.reasons.get(rest.removeprefix("messages/"), "")}))
        return Reply(200, msgspec.json.encode({"customer": {"messages": self.messages.get(customer, [])}}))


async def looked(why_not: WhyNot, stage: Stage, url: str) -> list[dict[str, Any]]:
    """The lines once everybody was looked at."""
    async with Nearcast(url, "key") as admin:
        for _ in stage.people:
            await why_not.look(admin)
    lines: list[dict[str, Any]] = why_not.shown({})["lines"]
    return lines


async def test_each_is_told_once_with_its_reason(stage: Stage) -> None:
    """Moments that led to nothing and messages that were stopped or taken back, newest first; offers that were made
    are no matter for it, nor is somebody of whom nothing is known yet."""
    anna, jonas = stage.people[0], stage.people[1]
    api = Api()
    api.decisions[anna.uid] = [decision(3, anna.uid, 3_000, None), decision(1, anna.uid, 1_000, Reason.CAPPED)]
    api.decisions[jonas.uid] = [decision(2, jonas.uid, 2_000, Reason.OUT_OF_STOCK)]
    sent = {"promotion": "cart-nearby", "at_ms": 3_000, "store": "store-1", "decision": "d3"}
    api.messages[anna.uid] = [
        sent | {"message": "m1", "status": "delivered"},
        sent | {"message": "m2", "status": "suppressed"},
        sent | {"message": "m3", "status": "recalled", "decision": "long ago", "at_ms": 500},
        sent | {"message": "m4", "status": "recalled", "at_ms": 400, "decision": "long ago"},
    ]
    api.reasons = {"m2": "store_closed", "m3": "left"}
    why_not = WhyNot(stage)
    with recording_server(answer=api.answer) as server:
        lines = await looked(why_not, stage, server.url)
        told = [(line["at_ms"], line["customer"], line["what"], line["reason"]) for line in lines]
        assert told == [
            (3_000, anna.name, "Not sent", "store_closed"),
            (2_000, jonas.name, "Not made", "out_of_stock"),
            (1_000, anna.name, "Not made", "capped"),
            (500, anna.name, "Taken back", "left"),
            (400, anna.name, "Taken back", "recalled"),
        ]
        shop = stage.retailer.shops[0].store.name
        assert {line["store"] for line in lines} == {shop}
        assert lines[2]["promotion"] == "Left in the online cart, in stock around the corner"
        assert lines[2]["words"] == "The customer has had this promotion often enough."
        assert lines[4]["words"] == ""
        assert await looked(why_not, stage, server.url) == lines
        api.decisions[jonas.uid] = [decision(10 + n, jonas.uid, 10_000 + n, Reason.LEFT) for n in range(KEPT + 5)]
        lines = await looked(why_not, stage, server.url)
        assert [line["at_ms"] for line in lines] == list(range(10_000 + KEPT + 4, 10_004, -1))


async def test_a_server_that_is_away_is_said(stage: Stage) -> None:
    """The caller goes on when it is back."""
    with recording_server(503) as server:
        async with Nearcast(server.url, "key") as admin:
            with pytest.raises(Unavailable):
                await WhyNot(stage).look(admin)


def test_counts_are_the_servers_own(stage: Stage) -> None:
    """By reason, of moments, messages and recalls together, over a restart; what came to something doesn't count."""

    def text(capped: int) -> str:
        return (
            "# TYPE nearcast_decisions counter\n"
            'nearcast_decisions_total{outcome="offer",reason=""} 9\n'
            f'nearcast_decisions_total{{outcome="nothing",reason="capped"}} {capped}\n'
            'nearcast_decisions_total{outcome="nothing",reason="left"} 1\n'
            "# TYPE nearcast_suppressed counter\n"
            'nearcast_suppressed_total{reason="left"} 2\n'
            "# TYPE nearcast_recalls counter\n"
            'nearcast_recalls_total{reason="left",result="recalled"} 4\n'
            'nearcast_recalls_total{reason="bought",result="stopped"} 1\n'
            'nearcast_recalls_total{reason="bought",result="left alone"} 5\n'
        )

    counters = ServerCounters()
    counters.read(text(7))
    assert counters.why_not() == {"capped": 7, "left": 7, "bought": 1}
    counters.read(text(3))
    assert counters.why_not() == {"capped": 10, "left": 14, "bought": 2}
    shown = WhyNot(stage).shown(counters.why_not())
    assert [(each["reason"], each["count"]) for each in shown["reasons"]] == [
        ("left", 14),
        ("capped", 10),
        ("bought", 2),
    ]
    assert shown["reasons"][0]["words"] == "The customer has left."
