"""Why not: what led to no message, or to one that was stopped or taken back, and for which reason.

Asked of nearcast over HTTP, a few shoppers at a time, so that everybody's newest decisions are looked at every few
seconds. How many there are for each reason is the server's own count.
"""

from collections import deque
from collections.abc import Iterator, Mapping
from itertools import cycle
from typing import Any

from clients.client import Nearcast, Refused
from clients.demo.stage import Stage
from nearcast.reasons import in_words

#: Kept for the page, newest first.
KEPT = 40
#: As many of a shopper's decisions are looked at, and as many shoppers at a time.
_DECISIONS = 50
_AT_ONCE = 2
_MAX_SEEN = 20_000
#: What becomes of a message without anybody seeing it, or before they do.
_STOPPED = {"suppressed": "Not sent", "recalled": "Taken back"}


class WhyNot:
    """The newest lines; `look` goes on by a few shoppers."""

    def __init__(self, stage: Stage) -> None:
        self._names = {person.uid: person.name for person in stage.people}
        self._stores = {shop.store.id: shop.store.name for shop in stage.retailer.shops}
        self._promotions = {promotion.id: promotion.name for promotion in stage.retailer.promotions}
        self._turn = cycle(self._names)
        self._seen: dict[str, None] = {}
        self._lines: deque[dict[str, object]] = deque(maxlen=KEPT)

    async def look(self, admin: Nearcast) -> None:
        """Look at the next few shoppers. Raises `Unavailable`."""
        for _ in range(min(_AT_ONCE, len(self._names))):
            customer = next(self._turn)
            try:
                decisions = await admin.decisions(customer, _DECISIONS)
                known = await admin.customer(customer)
            except Refused:
                continue  # nothing is known of them yet
            for decision in reversed(decisions):
                if decision["outcome"] == "nothing" and self._is_new(decision["id"]):
                    self._add(customer, decision["moment"], **_of_decision(decision))
            moments = {decision["id"]: decision["moment"] for decision in decisions}
            for sent in known["customer"]["messages"]:
                if sent["status"] in _STOPPED and self._is_new(f"{sent['message']} {sent['status']}"):
                    report = await admin.message(customer, sent["message"])
                    moment = moments.get(sent["decision"], {"at_ms": sent["at_ms"], "store": sent["store"]})
                    said = {"what": _STOPPED[sent["status"]], "reason": report["reason"] or sent["status"]}
                    self._add(customer, moment, promotion=sent["promotion"], **said)

    def shown(self, counts: Mapping[str, int]) -> dict[str, Any]:
        """What the page gets: all that is kept, newest first, and the counts by reason, most first."""
        ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        return {
            "lines": list(self._lines),
            "reasons": [{"reason": reason, "words": in_words(reason), "count": count} for reason, count in ranked],
        }

    def _is_new(self, name: str) -> bool:
        if name in self._seen:
            return False
        self._seen[name] = None
        if len(self._seen) > _MAX_SEEN:
            del self._seen[next(iter(self._seen))]
        return True

    def _add(self, customer: str, moment: Mapping[str, Any], *, what: str, promotion: str, reason: str) -> None:
        line = {
            "at_ms": moment["at_ms"],
            "customer": self._names[customer],
            "trigger": moment.get("trigger", ""),
            "store": self._stores.get(moment.get("store") or "", ""),
            "promotion": self._promotions.get(promotion, promotion),
            "what": what,
            "reason": reason,
            "words": in_words(reason) if reason not in _STOPPED else "",
        }
        # Shoppers are looked at in turn, the page shows times in order.
        self._lines = deque(sorted([line, *self._lines], key=lambda each: -int(str(each["at_ms"])))[:KEPT], maxlen=KEPT)


def _of_decision(decision: Mapping[str, Any]) -> dict[str, str]:
    """The promotion that got furthest, and what stopped it."""
    reason = decision["reason"]
    stopped: Iterator[str] = (each["promotion"] for each in decision["candidates"] if each.get("stopped_by") == reason)
    return {"what": "Not made", "promotion": next(stopped, ""), "reason": reason}
