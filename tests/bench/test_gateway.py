"""The benchmark of the gateway runs, in small, says what it measured in its last line, and would notice a loss."""

import asyncio
import json
import os
import socket
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bench import gateway_load
from bench.centrifugo import API_KEY, Centrifugo, configuration
from bench.gateway_floor import frame
from bench.gateway_load import Client, Connect, Group, frames, masked, vanish
from bench.gateway_publisher import CentrifugoPublisher, Publish, data_of, publish
from bench.processes import ROOT, environment

STAND_IN = Path(__file__).with_name("centrifugo_stand_in.py")
SECRET = "a-secret-of-the-tests-with-more-than-32-bytes"


async def run(path: str, *arguments: str) -> tuple[dict[str, Any], str]:
    """The last line and the errors of a run."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.gateway", *arguments),
        cwd=ROOT,
        env=environment(PATH=path),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(240):
        output, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    row: dict[str, Any] = json.loads(output.decode().splitlines()[-1])
    return row, errors.decode()


def stand_in(folder: Path) -> Path:
    """A `centrifugo` in this folder."""
    program = folder / "centrifugo"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {STAND_IN} "$@"\n')
    program.chmod(0o755)
    return program


async def test_the_capacity_of_all_contenders_is_compared(tmp_path: Path) -> None:
    stand_in(tmp_path)
    row, errors = await run(
        f"{tmp_path}:{os.environ['PATH']}",
        *("--parts", "capacity", "--connections", "60", "--listeners", "40", "--clients-per-process", "60"),
        *("--pushes", "240", "--broadcasts", "60", "--rounds", "2", "--idle-seconds", "1"),
    )
    assert "left out" not in errors
    assert row["bench"] == "gateway"
    assert row["centrifugo_engine"] == "redis"
    assert 1 < row["kib_per_connection"] < 200
    assert 50 < row["unicast_per_cpu_s"] < 100_000
    assert 1_000 < row["broadcast_per_cpu_s"] < 10_000_000
    # The floor writes as many bytes as the gateway, whose offsets may have a digit more or less.
    assert abs(row["floor_frame_bytes"] - row["nearcast"]["frame_bytes"]) <= 2
    assert row["floor_ratio"] > 0
    for name in ("vs_centrifugo_memory", "vs_centrifugo_unicast", "vs_centrifugo_broadcast"):
        assert row[name] > 0
    assert row["nearcast"]["gaps"] == row["nearcast"]["lost_connections"] == 0
    # What publishes is nearcast's own code, and a mere client of Centrifugo.
    assert row["nearcast"]["unicast_publisher_us"] > 0
    assert row["centrifugo"]["unicast_publisher_us"] == 0


async def test_delay_storm_and_slow_clients_are_measured() -> None:
    row, errors = await run(
        "/usr/bin:/bin",
        *("--parts", "alone", "--storm", "60", "--clients-per-process", "40", "--idle-seconds", "1"),
        *("--rate", "100", "--seconds", "2", "--storm-rate", "50", "--storm-seconds", "3"),
        *("--slow-rounds", "1", "--slow-seconds", "2"),
    )
    assert "Centrifugo: left out" in errors
    assert row["centrifugo_engine"] is None
    assert 0 < row["publish_to_socket_p50_ms"] <= row["publish_to_socket_p99_ms"]
    # It can't be quicker than the pause before a client comes back.
    assert 0.5 < row["reconnect_storm_s"] < 60
    assert row["storm_gaps"] == row["storm_unrecovered"] == 0
    assert [storm["clients"] for storm in row["storms"]] == [6, 60]
    for storm in row["storms"]:
        assert storm["back"]
        assert storm["received"] == storm["pushes"] == 150
    assert 1 < row["storm_store_calls_per_client"] < 100
    assert row["storm_store_reads_per_client"] < row["storm_store_calls_per_client"]
    assert row["slow_client_p99_ratio"] > 0
    assert row["slow_clients"] == 3
    assert row["healthy_clients_lost"] == 0


def client() -> tuple[Client, Group]:
    group = Group(Connect("g", port=1, first=7, count=1, secret=SECRET))
    [made] = group.clients
    return made, group


def push(offset: int, channel: str = "customer:c7") -> bytes:
    return frame(
        b'{"push":{"channel":"%b","pub":{"data":%b,"offset":%d}}}' % (channel.encode(), data_of(5, 300), offset)
    )


async def test_every_offset_is_counted() -> None:
    """Whatever pieces the bytes come in; a hole, a repeat and what was not recovered are noticed."""
    made, group = client()
    subs = b'{"customer:c7":{"epoch":"e","offset":2}}'
    said = b"HTTP/1.1 101 Switching Protocols\r\n\r\n" + frame(b'{"id":1,"connect":{"subs":%b}}\n{}' % subs)
    said += push(3) + push(4) + push(1, "store:bench")
    ours, theirs = socket.socketpair()
    await asyncio.get_running_loop().create_connection(lambda: made, sock=ours)
    for place in range(len(said)):
        made.data_received(said[place : place + 1])
    assert (group.received, group.gaps, group.unrecovered) == (3, 0, 0)
    assert group.frame_bytes == len(push(1, "store:bench"))
    made.data_received(push(6))
    made.data_received(push(6) + frame(b"{}"))
    assert (group.received, group.gaps) == (5, 2)
    # A ping is no publication.
    assert group.frame_bytes == len(push(6))
    sent = theirs.recv(65_536)
    assert sent.startswith(b"GET /connection/websocket HTTP/1.1\r\n")
    assert sent.endswith(masked(b"{}"))
    lost = b'{"customer:c7":{"epoch":"other","offset":9,"recovered":false}}'
    made.data_received(frame(b'{"id":1,"connect":{"subs":%b}}' % lost))
    made.data_received(push(10))
    assert (group.received, group.gaps, group.unrecovered) == (6, 2, 1)
    # Recovered up to 12, of which 11 is missing.
    found = b'{"customer:c7":{"epoch":"other","offset":12,"recovered":true,"publications":[{"data":{},"offset":12}]}}'
    made.data_received(frame(b'{"id":1,"connect":{"subs":%b}}' % found))
    assert (group.received, group.gaps, group.unrecovered) == (7, 3, 1)
    # Nothing came, though the channel went on.
    missed = b'{"customer:c7":{"epoch":"other","offset":14,"recovered":true}}'
    made.data_received(frame(b'{"id":1,"connect":{"subs":%b}}' % missed))
    assert (group.received, group.gaps, group.unrecovered) == (7, 4, 1)
    made.abort()
    theirs.close()


async def test_who_never_gets_in_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway_load, "_GIVE_UP_AFTER_S", 0.1)
    made, group = client()
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        group.port = nobody.getsockname()[1]
        with pytest.raises(RuntimeError, match="can't connect"):
            await made.connect()


async def test_more_connections_than_descriptors_are_refused_at_once() -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.gateway", "--connections", str(10**9)),
        cwd=ROOT,
        env=environment(),
        stderr=asyncio.subprocess.PIPE,
    )
    _, errors = await process.communicate()
    assert process.returncode == 1
    assert "need more descriptors" in errors.decode()


def test_a_fragmented_message_is_not_taken_for_a_whole_one() -> None:
    with pytest.raises(ValueError, match="fragmented"):
        list(frames(b"\x01\x01x", 0))


def test_who_vanishes_hears_nothing_and_says_nothing() -> None:
    """Not even the kernel answers: what is sent stays unacknowledged, and no reset comes back."""
    with socket.create_server(("127.0.0.1", 0)) as listening, socket.create_connection(listening.getsockname()) as gone:
        left, _ = listening.accept()
        with left:
            left.sendall(b"before")
            assert gone.recv(10) == b"before"
            vanish(gone)
            left.sendall(b"after")
            gone.settimeout(0.3)
            with pytest.raises(TimeoutError):
                gone.recv(10)
            left.setblocking(False)
            with pytest.raises(BlockingIOError):
                left.recv(1)


def test_centrifugo_gets_the_store_and_the_customers_channels() -> None:
    found = configuration(8_000, SECRET, "redis://:pass@127.0.0.1:7000/0")
    assert found["engine"] == {
        "type": "redis",
        "redis": {"address": "127.0.0.1:7000", "prefix": "centrifugo", "password": "pass"},
    }
    assert [each["name"] for each in found["channel"]["namespaces"]] == ["customer", "store"]
    assert all(each["history_size"] == 256 and each["force_recovery"] for each in found["channel"]["namespaces"])
    assert configuration(8_000, SECRET, None)["engine"] == {"type": "memory"}


async def test_a_publication_that_centrifugo_refuses_ends_the_run(tmp_path: Path) -> None:
    server = Centrifugo(stand_in(tmp_path), tmp_path, SECRET, None)
    await server.start()
    publisher = CentrifugoPublisher(server.url, API_KEY)
    try:
        done = await publish(publisher, Publish(5, channel="customer:c1", at_once=2), 2)
        assert done.pushes == 5
        with pytest.raises(RuntimeError, match="unknown channel"):
            await publish(publisher, Publish(1, channel="elsewhere:c1"), 1)
    finally:
        await publisher.close()
        await server.stop()


async def test_a_centrifugo_that_does_not_start_says_why(tmp_path: Path) -> None:
    program = tmp_path / "centrifugo"
    program.write_text("#!/bin/sh\necho bad configuration\nexit 1\n")
    program.chmod(0o755)
    with pytest.raises(RuntimeError, match="bad configuration"):
        await Centrifugo(program, tmp_path, SECRET, None).start()


async def test_each_push_is_published_once_at_its_time() -> None:
    """As fast as may be, in calls of several, or at a rate; its data says when it was due."""

    class Kept:
        def __init__(self) -> None:
            self.rows: list[tuple[str, bytes]] = []

        async def publish(self, rows: Any) -> None:
            await asyncio.sleep(0)
            self.rows += rows

        async def close(self) -> None: ...

    for order, together in (
        (Publish(103, first=10, count=5, at_once=8), 4),
        (Publish(103, first=10, count=5, at_once=8), 1),
        (Publish(103, first=10, count=5, rate=1_000.0), 1),
    ):
        kept = Kept()
        await publish(kept, order, together)
        assert sorted(channel for channel, _ in kept.rows) == sorted(f"customer:c{10 + n % 5}" for n in range(103))
        assert {len(data) for _, data in kept.rows} == {300}
    due = sorted(msgspec.json.decode(data)["at"] for _, data in kept.rows)
    assert due[-1] - due[0] == pytest.approx(102e6, abs=1e3)
