"""A Quix Streams application that does for each event what the engine does, with the same rules.

    python -m bench.quix.app --kafka host:port --topic NAME --world FILE --events N --warm-up N --state FOLDER

Decode, match the position, track, fold, candidates, gates, ONNX score, decision, message to an outbox topic; a
customer's two records live in its RocksDB state under the customer's key. Rules, fences and model are nearcast's own
packages; the loop, the state, its changelog and the commits are Quix Streams', with its defaults (at least once, a
checkpoint every five seconds).

Where the jobs differ, this one is easier. It reads one topic with all events instead of five that belong together; its
outbox is not committed together with its state; it stores no decision records, timers or dead letters; a plain fix
reads the presence only, and asks for no consent. Time is taken from the last event of the warm-up to the last event,
without the checkpoint at the end. Writes one `Result` as JSON.
"""

import argparse
import logging
import sys
import time
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import shapely
from quixstreams import Application, State  # type: ignore[import-not-found]  # lives in its own environment
from shapely.geometry.base import BaseGeometry

from bench.city import profile
from geofence.index import FenceIndex
from geofence.tracker import track
from models.features import redeem
from models.scorer import Scorer
from nearcast import fold
from nearcast.customer import Customer, Presence
from nearcast.events import Cart, Location, Purchase
from nearcast.ids import Sku, StoreId
from nearcast.messages import encode_outbox
from nearcast.moments import Moment, moments_of_transitions
from nearcast.world import Circle, Fence
from offers.candidates import candidates
from offers.catalogue import Catalogue
from offers.decide import Scores, decide, screen
from offers.messages import message_of
from offers.policy import Policy
from offers.worldfile import WorldFile

OUTBOX = "quix.outbox"
_PRESENCE, _CUSTOMER = "presence", "customer"
_METRE = 1 / 111_195
_DECODE = msgspec.json.Decoder(Location | Cart | Purchase).decode
_DECODE_PRESENCE = msgspec.msgpack.Decoder(Presence).decode
_DECODE_CUSTOMER = msgspec.msgpack.Decoder(Customer).decode
_ENCODE = msgspec.msgpack.Encoder().encode

Match = Callable[[float, float], list[Fence]]


class Result(msgspec.Struct):
    """What was measured, and which of the two ways to match one position was quicker and therefore used."""

    events: int
    seconds: float
    cpu_s: float
    messages: int
    matching: str


class Rules:
    """What the engine knows besides its state."""

    def __init__(self, world: WorldFile) -> None:
        self.catalogue = Catalogue.build(world.stores, world.products, world.promotions)
        self.fences = FenceIndex.build(world.fences)
        self.scorer = Scorer.load(Path(str(resources.files("models").joinpath("artifacts", "redeem"))))
        self.stock = {(StoreId(row.store), Sku(row.sku)): row.quantity for row in world.stock}
        self.policy = Policy()
        self.fold = fold.FoldRules()
        self.messages = 0
        self._now_ms = time.time_ns() // 1_000_000
        self.matching, self.match = _quicker(self.fences)

    def customer(self, state: State, number: int) -> Customer:
        known = state.get_bytes(_CUSTOMER)
        return profile(number, self._now_ms) if known is None else _DECODE_CUSTOMER(known)

    def handle(self, value: bytes, state: State) -> list[bytes]:
        """One event; the messages that follow from it."""
        event = _DECODE(value)
        if isinstance(event, Location):
            known = state.get_bytes(_PRESENCE)
            presence = Presence() if known is None else _DECODE_PRESENCE(known)
            transitions = track(presence, event, self.match(event.lat, event.lng), self.fences)
            state.set_bytes(_PRESENCE, _ENCODE(presence))
            if not transitions:
                return []
            moments = moments_of_transitions(event.event_id, event.customer, transitions)
            customer = self.customer(state, int(event.customer[1:]))
        else:
            customer = self.customer(state, int(event.customer[1:]))
            moments = fold.apply(customer, event, self.catalogue.segments, self.fold).moments
            state.set_bytes(_CUSTOMER, _ENCODE(customer))
        sent = [message for moment in moments if (message := self.decide(moment, customer)) is not None]
        if sent:
            state.set_bytes(_CUSTOMER, _ENCODE(customer))
            self.messages += len(sent)
        return sent

    def decide(self, moment: Moment, customer: Customer) -> bytes | None:
        """The message about a moment, if it is worth one."""
        found = candidates(moment, customer, self.catalogue)
        if not found:
            return None
        passed = screen(moment, customer, found, self.catalogue, self.stock, self.policy)
        scored = [index for index, candidate in enumerate(passed) if candidate.stopped_by is None]
        rows = [
            redeem.row(
                customer,
                self.catalogue.promotions[passed[index].promotion],
                self.catalogue.segments.get(passed[index].sku or ""),
                moment.at_ms,
            )
            for index in scored
        ]
        scores = Scores(
            propensities=dict(zip(scored, self.scorer.score(rows), strict=True)),
            inputs=dict(zip(scored, rows, strict=True)),
            model_version=self.scorer.version,
            features_hash=redeem.REDEEM.hash,
        )
        decision = decide(moment, customer, passed, scores, self.catalogue, self.policy)
        message = message_of(decision, self.catalogue)
        if message is None:
            return None
        fold.record_message(customer, message.id, decision)
        return encode_outbox(message)


def _quicker(index: FenceIndex) -> tuple[str, Match]:
    """nearcast's index or shapely's, whichever is quicker for one position at a time.

    The latter takes circles for polygons of 64 sides, without an exact test afterwards.
    """
    tree = shapely.STRtree([_outline(fence) for fence in index.fences])

    def by_tree(lat: float, lng: float) -> list[Fence]:
        return [index.fences[ordinal] for ordinal in tree.query(shapely.Point(lng, lat), "intersects")]

    def by_index(lat: float, lng: float) -> list[Fence]:
        (ordinals,) = index.match(np.array([lat]), np.array([lng]))
        return [index.fences[ordinal] for ordinal in ordinals]

    chance = np.random.default_rng(7)
    low, high = shapely.bounds(tree.geometries).min(axis=0)[:2], shapely.bounds(tree.geometries).max(axis=0)[2:]
    places = chance.uniform(low, high, size=(2_000, 2)).tolist()
    ways: dict[str, Match] = {"shapely STRtree": by_tree, "nearcast's index": by_index}
    times = {}
    for name, match in ways.items():
        started = time.perf_counter()
        for lng, lat in places:
            match(lat, lng)
        times[name] = time.perf_counter() - started
    best = min(times, key=lambda name: times[name])
    return best, ways[best]


def _outline(fence: Fence) -> BaseGeometry:
    if not isinstance(fence.geometry, Circle):
        return shapely.geometry.shape(msgspec.to_builtins(fence.geometry))
    lng, lat = fence.geometry.center
    corners = np.asarray(shapely.Point(0, 0).buffer(fence.geometry.radius_m * _METRE, quad_segs=16).exterior.coords)
    return shapely.Polygon(corners / (np.cos(np.radians(lat)), 1) + (lng, lat))


def main(arguments: argparse.Namespace) -> Result:
    rules = Rules(msgspec.json.decode(arguments.world.read_bytes(), type=WorldFile))
    seen, started, ended = 0, (0.0, 0.0), (0.0, 0.0)

    def count(*_: Any) -> None:
        nonlocal seen, started, ended
        seen += 1
        if seen == arguments.warm_up:
            started = time.perf_counter(), time.process_time()
        elif seen == arguments.warm_up + arguments.events:
            ended = time.perf_counter(), time.process_time()
            application.stop()

    application = Application(
        broker_address=arguments.kafka,
        consumer_group="quix",
        auto_offset_reset="earliest",
        state_dir=arguments.state,
        on_message_processed=count,
        loglevel=logging.WARNING,
    )
    events = application.topic(arguments.topic, value_deserializer="bytes", key_deserializer="bytes")
    outbox = application.topic(OUTBOX, value_serializer="bytes", key_serializer="bytes")
    frame = application.dataframe(events)
    frame = frame.apply(rules.handle, stateful=True, expand=True)
    frame.to_topic(outbox)
    application.run()
    return Result(
        seen - arguments.warm_up, ended[0] - started[0], ended[1] - started[1], rules.messages, rules.matching
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--kafka", required=True)
    parser.add_argument("--topic", required=True)
    parser.add_argument("--world", type=Path, required=True)
    parser.add_argument("--events", type=int, required=True)
    parser.add_argument("--warm-up", type=int, required=True)
    parser.add_argument("--state", type=Path, required=True)
    sys.stdout.buffer.write(msgspec.json.encode(main(parser.parse_args())) + b"\n")
