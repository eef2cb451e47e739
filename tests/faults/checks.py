"""The checkers: what outside evidence says against the invariants, one sentence for each violation.

The numbers are those of the invariants in the design: I1 one message and one coupon per decision; I3 every acknowledged
event has exactly one outcome; I7 a fenced process commits and sends nothing. None of this asks a nearcast process.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence

from nearcast.ids import CustomerId, MessageId
from nearcast.messages import Message, Recall
from server.log.base import Record
from tests import oracle
from tests.faults.evidence import Evidence
from tests.faults.traffic import PARTITIONS, RULES, WORLD

#: So many sentences say enough.
_SHOWN = 20


def expected_of(records: Iterable[Record]) -> oracle.Outcome:
    """What should be committed after these records of the log."""
    return oracle.run(oracle.by_arrival(records), WORLD, RULES, partitions=PARTITIONS)


def violations(
    evidence: Evidence,
    acknowledged: Iterable[Record],
    *,
    dispatched: bool = True,
    repeats: bool = True,
    deliveries: bool = True,
) -> list[str]:
    """Everything that is wrong, in words; at most `_SHOWN` of each kind.

    `dispatched`: a dispatcher has run. `repeats`: the provider may have been asked more than once under one key, since
    a dispatcher was killed or the store lost writes. `deliveries`: the store has lost nothing of how they ended.
    """
    outcome = expected_of(evidence.records)
    found = [
        *_log_keeps(evidence, acknowledged),
        *_read_to_the_end(evidence),
        *outcome.differences(evidence.committed, evidence.timers, outbox=False),
        *_outbox(evidence, outcome, dispatched),
    ]
    if dispatched:
        messages = [entry for of_one in outcome.outbox.values() for entry in of_one if isinstance(entry, Message)]
        phones = {name: customer.phone for name, customer in outcome.customers.items()}
        found += _texts(evidence, messages, phones)
        if deliveries:
            recalls = {
                entry.message for of_one in outcome.outbox.values() for entry in of_one if isinstance(entry, Recall)
            }
            found += _deliveries(evidence, messages, recalls)
        if not repeats:
            found += _no_second_request(evidence)
    return _shortened(found)


def _log_keeps(evidence: Evidence, acknowledged: Iterable[Record]) -> list[str]:
    """I3, first half: what was acknowledged is in the log."""
    there = {(record.topic, record.partition, record.position): record.value for record in evidence.records}
    return [
        f"lost: {record.topic}/{record.partition} at {record.position} was acknowledged, and is not in the log"
        for record in acknowledged
        if there.get((record.topic, record.partition, record.position)) != record.value
    ]


def _read_to_the_end(evidence: Evidence) -> list[str]:
    found = []
    for (topic, partition), end in sorted(evidence.ends.items()):
        stored = evidence.offsets[partition].get(topic)
        if stored != (str(end - 1) if end else None):
            found.append(f"offsets: the store is at {stored} of {topic}/{partition}, which ends after {end - 1}")
    return found


def _outbox(evidence: Evidence, outcome: oracle.Outcome, dispatched: bool) -> list[str]:
    """I7: a commit of a fenced process would have added its entries a second time."""
    found = []
    for partition in range(PARTITIONS):
        wanted, added = len(outcome.outbox.get(partition, ())), evidence.outbox_added[partition]
        if added != wanted:
            found.append(f"outbox: {added} entries were added to partition {partition}, should be {wanted}")
        if dispatched and evidence.outbox_left[partition]:
            found.append(f"outbox: {evidence.outbox_left[partition]} entries of partition {partition} are left")
    return found


def _texts(evidence: Evidence, messages: Sequence[Message], phones: Mapping[CustomerId, str]) -> list[str]:
    """I1, and I10: the provider holds one SMS for each message, and nothing else."""
    found = []
    wanted = {message.id: message for message in messages}
    for key in sorted(wanted.keys() | evidence.texts.keys()):
        form, message = evidence.texts.get(key), wanted.get(key)  # type: ignore[call-overload]
        if form is None:
            found.append(f"unsent: message {key} never reached the provider")
        elif message is None:
            found.append(f"undecided: the provider holds {key} to {form['To']}, which nobody decided")
        elif form["To"] != phones[message.customer]:
            found.append(f"misled: message {key} to {message.customer} went to {form['To']}")
    bodies = Counter((form["To"], form["Body"]) for form in evidence.texts.values())
    found += [f"twice: {to} got the same text {times} times" for (to, _), times in bodies.items() if times > 1]
    return found


def _deliveries(evidence: Evidence, messages: Sequence[Message], recalls: Collection[MessageId]) -> list[str]:
    """What was sent may have been recalled since, if the outbox should have held that."""
    found = []
    for message in messages:
        delivery = evidence.deliveries.get(message.id)
        ends = ("sent", "recalled") if message.id in recalls else ("sent",)
        if delivery is None or delivery.state not in ends:
            found.append(f"delivery: message {message.id} ended as {delivery}, should be sent")
    return found


def _no_second_request(evidence: Evidence) -> list[str]:
    return [f"asked: {times} times for {key}" for key, times in evidence.requests.items() if times > 1]


def _shortened(found: Sequence[str]) -> list[str]:
    seen: Counter[str] = Counter()
    kept = []
    for sentence in found:
        kind = sentence.split()[0]
        seen[kind] += 1
        if seen[kind] <= _SHOWN:
            kept.append(sentence)
    return [*kept, *(f"{kind} ... and {times - _SHOWN} more" for kind, times in seen.items() if times > _SHOWN)]
