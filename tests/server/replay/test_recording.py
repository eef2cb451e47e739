"""The recording file: what is written is read again, and what is damaged is named."""

import base64
import json
import stat
from pathlib import Path

import pytest

from nearcast import topics
from nearcast.errors import InputError
from nearcast.ids import CustomerId
from server.log.base import Record
from server.replay.recording import FORMAT, Header, Recorded, Recording, writing
from tests.server.api.shop import OFFER, decision_of
from tests.server.town import WORLD

HEADER = Header(nearcast_recording=FORMAT, log="kafka", partitions=4, since_ms=1)
RECORDS = [
    Record(topics.CARTS, 3, "17", "ann", '{"uid":"änn"}'.encode(), 1_000),
    Record(topics.LOCATIONS, 0, "18", "", b"\xff\xfe\n", 900),
    Record(topics.CARTS, 3, "19", "ann", b"", 2_000),
]
LINE = '{"topic":"customers.carts","partition":0,"position":"1","key":"ann","value":"{}","arrived_ms":5}'


def write(file: Path) -> None:
    with writing(file) as writer:
        writer.header(HEADER)
        writer.world(WORLD)
        for record in RECORDS:
            writer.record(record)
        writer.recorded(Recorded([decision_of(OFFER, "offer", 7)], {CustomerId("ann"): 6}))
        writer.end()


@pytest.mark.parametrize("name", ["day.jsonl", "day.jsonl.gz"])
def test_written_and_read(tmp_path: Path, name: str) -> None:
    """Everything comes back as it was, packed or not; only its owner can read it; the same content, the same bytes."""
    file, again = tmp_path / name, tmp_path / f"again-{name}"
    write(file)
    write(again)
    assert file.read_bytes() == again.read_bytes()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert (file.read_bytes()[:2] == b"\x1f\x8b") is name.endswith(".gz")
    recording = Recording(file)
    assert (recording.header, recording.world) == (HEADER, WORLD)
    assert recording.recorded == Recorded([decision_of(OFFER, "offer", 7)], {CustomerId("ann"): 6})
    assert (recording.records_count, recording.first_ms, recording.last_ms) == (3, 900, 2_000)
    assert list(recording.records()) == list(recording.records()) == RECORDS


def test_written_by_hand(tmp_path: Path) -> None:
    """Records alone are a recording: one JSON object a line, in any layout; bytes that are no text as base64."""
    file = tmp_path / "by-hand"
    packed = base64.b64encode(b"\xff").decode()
    spaced = json.dumps(
        {"value_base64": packed, "arrived_ms": 6, "position": "2", "partition": 1, "topic": "t"}, indent=None
    )
    file.write_text(f"{LINE}\n\n{spaced}")
    recording = Recording(file)
    assert (recording.header, recording.world, recording.recorded) == (None, None, None)
    assert list(recording.records()) == [
        Record("customers.carts", 0, "1", "ann", b"{}", 5),
        Record("t", 1, "2", "", b"\xff", 6),
    ]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("{", "no line"),
        ("[]", "no line"),
        ("{}", "nearcast_recording"),
        ('{"nearcast_recording":99,"log":"kafka","partitions":4}', "format 99"),
        (LINE.replace('"arrived_ms":5', '"arrived_ms":"5"'), "arrived_ms"),
        (LINE.replace('"arrived_ms":5', '"arrived_ms":-5'), "negative"),
        (LINE.replace('"position":"1",', ""), "position"),
        (LINE.replace('"value":"{}",', ""), "value"),
        (LINE.replace('"value":"{}"', '"value_base64":"%"'), "base64"),
        (LINE.replace('"key"', '"kee"'), "kee"),
        ('{"world":{"stores":[{}]}}', "world.stores[0]"),
        ('{"decision":{}}', "decision"),
    ],
)
def test_a_damaged_line_is_named(tmp_path: Path, damage: str, said: str) -> None:
    """Whatever is wrong with a line, the error says which, and what."""
    file = tmp_path / "damaged"
    file.write_text(f"{LINE}\n{damage}\n{LINE}\n")
    with pytest.raises(InputError, match=r"damaged:2\)$") as error:
        Recording(file)
    assert said in str(error.value)


def test_damaged_packing(tmp_path: Path) -> None:
    """A packed file that is cut off, or has a flipped bit, is refused."""
    file = tmp_path / "day.gz"
    write(file)
    whole = file.read_bytes()
    for broken in (whole[:-20], whole[: len(whole) // 2], whole[:40] + bytes([whole[40] ^ 0xFF]) + whole[41:]):
        file.write_bytes(broken)
        with pytest.raises(InputError, match=r"damaged|cut off"):
            Recording(file)


def test_cut_off(tmp_path: Path) -> None:
    """A recording that ends too early, or lacks a record in the middle, is not taken for a whole one."""
    file = tmp_path / "day"
    write(file)
    lines = file.read_bytes().splitlines(keepends=True)
    for left in (lines[:-1], lines[:3], [*lines[:2], *lines[3:]]):
        file.write_bytes(b"".join(left))
        with pytest.raises(InputError, match="cut off"):
            Recording(file)


def test_a_partition_that_cannot_be(tmp_path: Path) -> None:
    """A record of a partition that the log doesn't have."""
    file = tmp_path / "day"
    with writing(file) as writer:
        writer.header(HEADER)
        writer.record(Record("t", 4, "1", "", b"", 1))
        writer.end()
    with pytest.raises(InputError, match="partition 4"):
        Recording(file)


def test_files_that_are_in_the_way(tmp_path: Path) -> None:
    """Nothing is written over, an unfinished recording does not stay, and what can't be opened is said."""
    file = tmp_path / "day"
    write(file)
    with pytest.raises(InputError, match="already"):
        write(file)
    with pytest.raises(ZeroDivisionError), writing(tmp_path / "other") as writer:
        writer.header(Header(nearcast_recording=1 // 0, log="", partitions=1))
    assert not (tmp_path / "other").exists()
    with pytest.raises(InputError, match="No such file"):
        write(tmp_path / "nowhere" / "day")
    with pytest.raises(InputError, match="No such file"):
        Recording(tmp_path / "missing")
    with pytest.raises(InputError, match="directory"):
        Recording(tmp_path)
    (tmp_path / "empty").touch()
    with pytest.raises(InputError, match="no record"):
        Recording(tmp_path / "empty")
