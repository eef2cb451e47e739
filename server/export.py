"""The decision log as a file: decisions out of the store, joined with what came of them.

Bounded in memory: a few customers and their decisions at a time. What is decided meanwhile may be in it or not. A
decision and its message are committed together, and the decisions are read before the messages, so an offer never
looks unsent for being new.

No name, contact point, position, event or order is exported. Ids of customers and decisions become keyed hashes, the
same in every export with the same secret. Places in experiments, which would name somebody as well as an id does, are
cut to three digits. What is left is still about people: it is pseudonymous, not anonymous.
"""

import hashlib
import hmac
import re
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
from redis.asyncio import Redis

from models.features.sets import SETS
from models.training.logged import FEATURE_PREFIX, LogWriter
from nearcast import keys
from nearcast.customer import Customer, SentMessage
from nearcast.decisions import Candidate, Decision
from nearcast.errors import UnreadableState
from nearcast.events import DeliveryStatus
from nearcast.ids import ANONYMOUS_PREFIX, CustomerId, DecisionId, coupon_code
from server.coupons import AppliedOffer
from server.state import StateStore
from server.store import reaching_store, text
from server.stored import decode_customer

#: With their decisions (at most `server.state.KEPT_DECISIONS` each, some kilobytes), tens of megabytes.
_CUSTOMERS_AT_ONCE = 50
_LISTS = re.compile(re.escape(keys.PREFIX) + r"\{(\d+)\}:decisions:(.*)", re.DOTALL)
_DECISION = msgspec.json.Decoder(Decision)
_FEATURES = SETS["redeem"]
_COLUMNS = tuple(FEATURE_PREFIX + name for name in _FEATURES.columns)

_DELIVERED: frozenset[DeliveryStatus] = frozenset({"delivered", "opened", "dismissed", "applied", "redeemed"})
_OPENED: frozenset[DeliveryStatus] = frozenset({"opened", "applied", "redeemed"})


class _Person(NamedTuple):
    """Whose decisions, and where their state is."""

    partition: int
    customer: CustomerId


class Wish(NamedTuple):
    """What to export: decisions about moments from `since_ms` to before `until_ms`; None is no bound."""

    since_ms: int | None = None
    until_ms: int | None = None
    with_customer_ids: bool = False

    def includes(self, at_ms: int) -> bool:
        return (self.since_ms is None or at_ms >= self.since_ms) and (self.until_ms is None or at_ms < self.until_ms)


class Exported(msgspec.Struct):
    """What is in the file, and what is not."""

    decisions: int = 0
    customers: int = 0
    rows: int = 0
    #: Decisions that this release can't read; and those, exported without inputs, whose model had others than ours.
    unreadable_decisions: int = 0
    other_features: int = 0
    #: Whose record can't be read: nothing is known of what came of their decisions.
    unreadable_customers: int = 0


class _Coupon(NamedTuple):
    """What became of a decision's coupon; `amount_cents` is what it took off, as the till said, or takes off, if that
    is a fixed amount.
    """

    applied_ms: int
    redeemed_ms: int | None
    redeemed_store: str | None
    amount_cents: int | None


class _Promotion(msgspec.Struct):
    """What the file says of a promotion as it is now."""

    kind: str = "offer"


class DecisionExport:
    """Exports from one store. `secret` is that of the coupons: it finds them, and makes the hashes."""

    def __init__(self, redis: Redis, partitions: int, secret: bytes, now_ms: int) -> None:
        self._redis = redis
        self._state = StateStore(redis, partitions)
        self._secret = secret
        self._now_ms = now_ms

    async def write(
        self, path: Path, wish: Wish, progress: Callable[[int], None] = lambda _decisions: None
    ) -> Exported:
        """Write the file `path`, all or nothing. `progress` hears how many decisions there are so far.

        Raises `InputError` (the file) and `Unavailable` (the store).
        """
        exported = Exported()
        with LogWriter(path, _FEATURES.columns) as writer:
            kinds = await self._kinds()
            async for people in self._people():
                decided = await self._decided(people, wish, exported)
                customers = await self._customers([person for person in people if decided[person]], exported)
                coupons = await self._coupons([decision for each in decided.values() for decision in each])
                for person, customer in customers.items():
                    sent = {} if customer is None else {message.decision: message for message in customer.messages}
                    exported.customers += 1
                    for decision in decided[person]:
                        outcome = _outcome(decision, customer, sent.get(decision.id), coupons.get(decision.id))
                        shared = _of_decision(decision) | self._ids(decision, wish) | {"exported": self._now_ms}
                        exported.decisions += 1
                        exported.other_features += decision.features_hash not in ("", _FEATURES.hash)
                        for row in _of_actions(decision, kinds):
                            writer.add(shared | row | (outcome if row["chosen"] else {}))
                            exported.rows += 1
                progress(exported.decisions)
        return exported

    async def _people(self) -> AsyncIterator[list[_Person]]:
        """Everybody about whom there are decisions, once, some at a time."""
        seen: set[CustomerId] = set()
        some: list[_Person] = []
        cursor = 0
        while True:
            with reaching_store():
                cursor, names = await self._redis.scan(cursor, keys.decisions_of(0, "*").replace("{0}", "{*}"), 1_000)
            for name in names:
                found = _LISTS.fullmatch(text(name))
                # A scan may show a key twice; and a customer's id may look like a part of a key.
                if found is not None and found[2] not in seen:
                    seen.add(CustomerId(found[2]))
                    some.append(_Person(int(found[1]), CustomerId(found[2])))
                    if len(some) == _CUSTOMERS_AT_ONCE:
                        yield some
                        some = []
            if cursor == 0:
                break
        if some:
            yield some

    async def _decided(
        self, people: Sequence[_Person], wish: Wish, exported: Exported
    ) -> Mapping[_Person, list[Decision]]:
        """The decisions about each, oldest first."""
        with reaching_store():
            pipe = self._redis.pipeline(transaction=False)
            for person in people:
                pipe.lrange(keys.decisions_of(person.partition, person.customer), 0, -1)
            lists = await pipe.execute()
            pipe = self._redis.pipeline(transaction=False)
            for person, names in zip(people, lists, strict=True):
                pipe.mget([keys.decision(person.partition, text(name)) for name in reversed(names)])
            blobs = await pipe.execute()
        decided: dict[_Person, list[Decision]] = {person: [] for person in people}
        for person, found in zip(people, blobs, strict=True):
            for blob in found:
                if blob is None:
                    continue
                try:
                    decision = _DECISION.decode(blob)
                except msgspec.MsgspecError:
                    exported.unreadable_decisions += 1
                    continue
                if wish.includes(decision.at_ms):
                    decided[person].append(decision)
        return decided

    async def _customers(self, people: Sequence[_Person], exported: Exported) -> Mapping[_Person, Customer | None]:
        """Their records, None for one that can't be read."""
        names: dict[int, list[CustomerId]] = {}
        for person in people:
            names.setdefault(person.partition, []).append(person.customer)
        found = await self._state.fetch({partition: ((), some) for partition, some in names.items()})
        customers: dict[_Person, Customer | None] = {}
        for partition, (_, blobs) in found.items():
            for name, blob in zip(names[partition], blobs, strict=True):
                try:
                    customers[_Person(partition, name)] = decode_customer(name, blob)
                except UnreadableState:
                    exported.unreadable_customers += 1
                    customers[_Person(partition, name)] = None
        return customers

    async def _coupons(self, decisions: Sequence[Decision]) -> Mapping[DecisionId, _Coupon]:
        """The coupons that were applied, and are still kept."""
        offers = [decision.id for decision in decisions if decision.outcome == "offer"]
        with reaching_store():
            pipe = self._redis.pipeline(transaction=False)
            for decision in offers:
                name = keys.coupon(coupon_code(self._secret, decision))
                pipe.hmget(name, "offer", "state", "applied_ms", "redeemed_ms", "redeemed_store", "discount_cents")
            answers = await pipe.execute() if offers else []
        return {
            decision: _coupon(*fields)
            for decision, fields in zip(offers, answers, strict=True)
            if fields[0] is not None
        }

    async def _kinds(self) -> Mapping[str, str]:
        """The kind of every promotion that there is now."""
        with reaching_store():
            rows = await self._redis.hgetall(keys.world("promotion"))
        return {text(name): msgspec.json.decode(row, type=_Promotion).kind for name, row in rows.items()}

    def _ids(self, decision: Decision, wish: Wish) -> dict[str, object]:
        if wish.with_customer_ids:
            return {"customer": decision.customer, "decision": decision.id}
        return {"customer": self._hash("customer", decision.customer), "decision": self._hash("decision", decision.id)}

    def _hash(self, what: str, name: str) -> str:
        return hmac.new(self._secret, f"export\x00{what}\x00{name}".encode(), hashlib.sha256).hexdigest()[:32]


def _of_decision(decision: Decision) -> dict[str, object]:
    """What all rows of a decision have."""
    would_be = decision.would_be
    return {
        "at": decision.at_ms,
        "deadline": decision.deadline_ms,
        "visitor": decision.customer.startswith(ANONYMOUS_PREFIX),
        "trigger": decision.moment.trigger,
        "store": decision.store,
        "outcome": decision.outcome,
        "reason": decision.reason,
        "held_out": would_be is not None,
        "would_be_promotion": None if would_be is None else would_be.promotion,
        "would_be_sku": None if would_be is None else would_be.sku,
        "explored": decision.explored,
        "chosen_probability": decision.chosen_probability,
        "arms": _arms(decision.arms),
        "model_version": decision.model_version,
        "rules_version": decision.rules_version,
        "features_hash": decision.features_hash,
    }


def _arms(arms: Mapping[str, float]) -> str | None:
    """As JSON: it survives every tool that writes the file anew."""
    if not arms:
        return None
    return msgspec.json.encode({name: int(place * 1_000) / 1_000 for name, place in arms.items()}).decode()


def _of_actions(decision: Decision, kinds: Mapping[str, str]) -> Iterator[dict[str, object]]:
    """A row for nothing, and one for every candidate."""
    chosen = _chosen(decision)
    probabilities = [each.probability for each in decision.candidates if each.propensity is not None]
    # Decisions of a release that did not note probabilities have none for nothing either.
    known = None not in probabilities
    yield {
        "position": -1,
        "kind": "nothing",
        "chosen": chosen is None,
        "value_cents": 0.0,
        "cost_cents": 0.0,
        "expected_cents": 0.0,
        "candidate_held_out": False,
        "probability": max(0.0, 1.0 - sum(each or 0.0 for each in probabilities)) if known else None,
    }
    named = decision.features_hash == _FEATURES.hash
    for position, candidate in enumerate(decision.candidates):
        is_chosen = candidate is chosen
        inputs = dict(zip(_COLUMNS, candidate.inputs, strict=True)) if named and candidate.inputs else {}
        yield inputs | {
            "position": position,
            "promotion": candidate.promotion,
            "sku": candidate.sku,
            "kind": decision.outcome if is_chosen else kinds.get(candidate.promotion),
            "chosen": is_chosen,
            "stopped_by": candidate.stopped_by,
            "propensity": candidate.propensity,
            "value_cents": candidate.value_cents,
            "cost_cents": candidate.cost_cents,
            "expected_cents": candidate.expected_cents,
            "probability": candidate.probability,
            "candidate_held_out": candidate.held_out,
        }


def _chosen(decision: Decision) -> Candidate | None:
    if decision.promotion is None:
        return None
    of_it = (each for each in decision.candidates if each.stopped_by is None)
    return next((each for each in of_it if (each.promotion, each.sku) == (decision.promotion, decision.sku)), None)


def _outcome(
    decision: Decision, customer: Customer | None, sent: SentMessage | None, coupon: _Coupon | None
) -> dict[str, object]:
    """What came of it. Null is what isn't known: of nothing, of a message forgotten, of what the last status hides."""
    outcome: dict[str, object] = {}
    if customer is not None:
        outcome["purchased_after"] = customer.history.last_ms > decision.at_ms
    chosen = _chosen(decision)
    if chosen is None:
        return outcome | {"reward_cents": 0.0}
    status = None if sent is None else sent.status
    if sent is not None:
        outcome |= {
            "status": status,
            "channel": sent.channel,
            "delivered": None if status == "recalled" else status in _DELIVERED,
            "opened": None if status in ("recalled", "dismissed") else status in _OPENED,
            "applied": status in ("applied", "redeemed"),
            "redeemed": status == "redeemed",
        }
    if coupon is not None:
        # It knows better: the receipt of a redemption, or of its end, may be on its way, or never have been written.
        outcome |= {"applied": True, "applied_at": coupon.applied_ms, "redeemed": coupon.redeemed_ms is not None}
    if coupon is not None and coupon.redeemed_ms is not None:
        outcome |= {
            "redeemed_at": coupon.redeemed_ms,
            "redeemed_store": coupon.redeemed_store,
            "redeemed_cents": coupon.amount_cents,
        }
    if "redeemed" in outcome and chosen.value_cents is not None and decision.outcome == "offer":
        outcome["reward_cents"] = chosen.value_cents * bool(outcome["redeemed"]) - (chosen.cost_cents or 0.0)
    return outcome


def _coupon(
    offer: bytes,
    state: bytes,
    applied_ms: bytes,
    redeemed_ms: bytes | None,
    store: bytes | None,
    discount_cents: bytes | None,
) -> _Coupon:
    discount = msgspec.json.decode(offer, type=AppliedOffer).discount
    amount_cents = None if discount is None else discount.amount_cents
    redeemed = text(state) == "redeemed"
    return _Coupon(
        applied_ms=int(applied_ms),
        redeemed_ms=int(redeemed_ms) if redeemed and redeemed_ms else None,
        redeemed_store=text(store) if redeemed and store else None,
        amount_cents=int(discount_cents) if redeemed and discount_cents else amount_cents,
    )
