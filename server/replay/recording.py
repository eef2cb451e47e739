"""A recording: a stretch of the event log in one file, with the world it is about and what was decided on it.

JSON lines, gzip if the name ends in `.gz`. A line is a record (`topic`, `partition`, `position`, `key`, `value` or
`value_base64`, `arrived_ms`), in the order of arrival, or one of: `nearcast_recording` (the first line), `world`,
`decision`, `kept_from`, `end` (the last). Records alone are a recording too: one that somebody wrote by hand, of which
nobody can tell whether it is complete.

It holds personal data, so a file that is written here is readable by its owner only.
"""

import base64
import binascii
import gzip
import os
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

import msgspec

from nearcast import topics
from nearcast.decisions import Decision
from nearcast.errors import InputError
from nearcast.events import Timer, decode
from nearcast.ids import CustomerId
from offers.worldfile import WorldFile
from server.log.base import Record

FORMAT = 1
_GZIP = b"\x1f\x8b"


class Header(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Where the records come from. Times in ms since the Unix epoch; None is an open end."""

    nearcast_recording: int
    #: "streams" or "kafka".
    log: str
    partitions: int
    since_ms: int | None = None
    until_ms: int | None = None


class KeptFrom(msgspec.Struct, frozen=True):
    """The store keeps decisions for a time, and a bounded number about a customer: older ones than this may be gone."""

    customer: CustomerId
    at_ms: int


class End(msgspec.Struct, frozen=True):
    """The last line: so many records came before."""

    records: int


class _RecordLine(msgspec.Struct, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    topic: str
    partition: int
    position: str
    key: str = ""
    value: str | None = None
    #: For bytes that aren't UTF-8.
    value_base64: str | None = None
    arrived_ms: int


class _WorldLine(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    world: WorldFile


class _DecisionLine(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    decision: Decision


class _KeptFromLine(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    kept_from: KeptFrom


class _EndLine(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    end: End


_Line = Header | WorldFile | Decision | KeptFrom | End | Record

_KEYS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_RECORD = msgspec.json.Decoder(_RecordLine)
_ENCODER = msgspec.json.Encoder()


#: Whose timer, its kind, and when it is due, in ms.
TimerKey = tuple[CustomerId, str, int]


class Recorded(NamedTuple):
    """What the live engine decided, as far as the recording knows."""

    decisions: list[Decision]
    kept_from: dict[CustomerId, int]


class Recording:
    """A file that was read through once, every line of it. Raises `InputError` that names the line at fault."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.header: Header | None = None
        self.world: WorldFile | None = None
        #: None in a recording of records alone: then nothing is known of what was decided.
        self.recorded: Recorded | None = None
        #: How often each timer comes in the records.
        self.timers: Counter[TimerKey] = Counter()
        self.records_count = 0
        self.first_ms = 0
        self.last_ms = 0
        self._read_through()

    def records(self) -> Iterator[Record]:
        """The records, in the order of the file."""
        return (line for line in _lines(self.file) if isinstance(line, Record))

    def _read_through(self) -> None:
        end: End | None = None
        highest = 0
        decisions: list[Decision] = []
        kept_from: dict[CustomerId, int] = {}
        for line in _lines(self.file):
            match line:
                case Record():
                    self.first_ms = line.arrived_ms if self.records_count == 0 else min(self.first_ms, line.arrived_ms)
                    self.last_ms = max(self.last_ms, line.arrived_ms)
                    self.records_count += 1
                    highest = max(highest, line.partition)
                    if (timer := timer_in(line)) is not None:
                        self.timers[key_of_timer(timer)] += 1
                case Header():
                    self.header = line
                case WorldFile():
                    self.world = line
                case Decision():
                    decisions.append(line)
                case KeptFrom():
                    kept_from[line.customer] = line.at_ms
                case End():
                    end = line
        if self.header is not None:
            if end is None or end.records != self.records_count:
                raise InputError("broken_recording", "the recording is cut off: make it again", str(self.file))
            if highest >= self.header.partitions:
                raise InputError(
                    "broken_recording",
                    f"a record is of partition {highest}, and there are {self.header.partitions}",
                    str(self.file),
                )
            self.recorded = Recorded(decisions, kept_from)
        if self.records_count == 0:
            raise InputError("empty_recording", "there is no record in it", str(self.file))


def timer_in(record: Record) -> Timer | None:
    """The timer that came due with this record."""
    if record.topic != topics.FEEDBACK or b"timer" not in record.value:
        return None
    try:
        event = decode(record.topic, record.value, position=record.position, arrived_ms=record.arrived_ms)
    except InputError:
        return None
    return event if isinstance(event, Timer) else None


def key_of_timer(timer: Timer) -> TimerKey:
    return timer.customer, timer.kind, timer.due_ms


class Writer:
    """Writes a recording; see `writing`."""

    def __init__(self, output: IO[bytes]) -> None:
        self._output = output
        self.records_count = 0

    def header(self, header: Header) -> None:
        self._write(header)

    def world(self, world: WorldFile) -> None:
        self._write(_WorldLine(world))

    def record(self, record: Record) -> None:
        line = _RecordLine(
            topic=record.topic,
            partition=record.partition,
            position=record.position,
            key=record.key,
            arrived_ms=record.arrived_ms,
        )
        try:
            line.value = record.value.decode()
        except UnicodeDecodeError:
            line.value_base64 = base64.b64encode(record.value).decode()
        self._write(line)
        self.records_count += 1

    def recorded(self, recorded: Recorded) -> None:
        for decision in recorded.decisions:
            self._write(_DecisionLine(decision))
        for customer, at_ms in recorded.kept_from.items():
            self._write(_KeptFromLine(KeptFrom(customer, at_ms)))

    def end(self) -> None:
        self._write(_EndLine(End(self.records_count)))

    def _write(self, line: msgspec.Struct) -> None:
        self._output.write(_ENCODER.encode(line))
        self._output.write(b"\n")


@contextmanager
def writing(file: Path) -> Iterator[Writer]:
    """Create a recording, mode 0600; one that could not be finished is removed.

    Raises `InputError` if the file exists already, or can't be created.
    """
    with private_file(file) as output:
        if file.suffix == ".gz":
            with gzip.GzipFile(filename="", mode="wb", fileobj=output, mtime=0) as packed:
                yield Writer(packed)  # type: ignore[arg-type]  # typeshed: a GzipFile is no IO[bytes]
        else:
            yield Writer(output)


@contextmanager
def private_file(file: Path) -> Iterator[IO[bytes]]:
    """A new file that only its owner can read; removed if the block fails. Raises `InputError`."""
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise InputError("file_exists", "there is such a file already; remove it, or name another", str(file)) from None
    except OSError as error:
        raise InputError("unwritable_file", f"can't be created: {error.strerror}", str(file)) from None
    try:
        with os.fdopen(descriptor, "wb") as output:
            yield output
    except BaseException:
        file.unlink(missing_ok=True)
        raise


def _lines(file: Path) -> Iterator[_Line]:
    number = 0
    try:
        with file.open("rb") as raw:
            packed = raw.read(2) == _GZIP
            raw.seek(0)
            lines: Iterable[bytes] = gzip.GzipFile(fileobj=raw) if packed else raw
            for line in lines:
                number += 1
                if line.strip():
                    yield _decode(line)
    except OSError as error:
        if number == 0 and not isinstance(error, gzip.BadGzipFile):
            raise InputError("broken_recording", f"can't be read: {error.strerror or error}", str(file)) from None
        raise InputError("broken_recording", f"damaged: {error}", f"{file}:{number + 1}") from None
    except (EOFError, zlib.error) as error:
        raise InputError("broken_recording", f"damaged: {error}", f"{file}:{number + 1}") from None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, binascii.Error, ValueError) as error:
        raise InputError("broken_recording", f"no line of a recording: {error}", f"{file}:{number}") from None


def _decode(line: bytes) -> _Line:
    found = _KEYS.decode(line)
    if "topic" in found:
        return _record(_RECORD.decode(line))
    if "world" in found:
        return msgspec.json.decode(line, type=_WorldLine).world
    if "decision" in found:
        return msgspec.json.decode(line, type=_DecisionLine).decision
    if "kept_from" in found:
        return msgspec.json.decode(line, type=_KeptFromLine).kept_from
    if "end" in found:
        return msgspec.json.decode(line, type=_EndLine).end
    header = msgspec.json.decode(line, type=Header)
    if header.nearcast_recording != FORMAT:
        raise ValueError(f"format {header.nearcast_recording}; this nearcast reads format {FORMAT}")
    return header


def _record(line: _RecordLine) -> Record:
    if (line.value is None) == (line.value_base64 is None):
        raise ValueError("a record has either `value` or `value_base64`")
    if line.partition < 0 or line.arrived_ms < 0:
        raise ValueError("`partition` and `arrived_ms` can't be negative")
    value = line.value.encode() if line.value is not None else base64.b64decode(line.value_base64 or "", validate=True)
    return Record(line.topic, line.partition, line.position, line.key, value, line.arrived_ms)
