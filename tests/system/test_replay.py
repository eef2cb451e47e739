"""`nearcast record` and `nearcast replay` as people use them: real processes, beside a running server."""

import asyncio
import json
import stat
import time
from pathlib import Path
from typing import Any

import msgspec
from redis.asyncio import Redis

from clients.client import Nearcast, Refused
from nearcast import keys
from nearcast.events import Cart, Consent, Location
from offers.worldfile import WorldFile
from tests.server.town import LNG, WORLD, metres_north
from tests.services.forks import output_of
from tests.system.process import Server, decisions, eventually


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def walk(metres: float) -> Location:
    return Location(uid="ann", ts=now_ms(), lat=metres_north(metres), lng=LNG, accuracy_m=5.0)


#: What processes write that have nothing to do.
GOING_ON = (b":owner", b":sweeping", b":watchdog")


async def stored(folder: Path) -> dict[bytes, Any]:
    """Everything in the embedded store but leases, when dispatchers last read, and the watchdog's: those go on."""
    access = json.loads((folder / "data" / "valkey" / "access.json").read_bytes())
    found: dict[bytes, Any] = {}
    async with Redis(port=access["port"], password=access["password"]) as redis:
        async for name in redis.scan_iter(count=1_000):
            if await redis.type(name) == b"stream":
                about = await redis.xinfo_stream(name)
                found[name] = about["last-generated-id"], about["groups"], await redis.xrange(name)
            elif not any(part in name for part in (keys.log_members("").encode(), *GOING_ON)):
                found[name] = await redis.dump(name)
    return found


async def until_quiet(shop: Nearcast, folder: Path) -> dict[bytes, Any]:
    """Wait until every message of Ann's has its receipt, and nothing changes any more; what is stored then."""

    async def reported() -> bool:
        messages = (await shop.customer("ann"))["customer"]["messages"]
        return bool(messages) and all(sent["status"] is not None for sent in messages)

    async def still() -> dict[bytes, Any] | None:
        before = await stored(folder)
        await asyncio.sleep(0.3)
        return before if await stored(folder) == before else None

    await eventually(reported)
    return await eventually(still)  # type: ignore[no-any-return]


async def test_beside_a_running_server(tmp_path: Path) -> None:
    """Recording and replaying change nothing in the store and don't take the engine's place: it goes on at once."""
    rules = tmp_path / "rules"
    rules.mkdir()
    helps = [each for each in WORLD.promotions if each.id == "help"]
    (rules / "help.json").write_bytes(msgspec.json.encode(WorldFile(promotions=helps)))
    file = str(tmp_path / "day.jsonl.gz")
    async with Server(tmp_path) as server, server.client() as shop:
        # Nobody dwells while the commands run, however long they take.
        fences = [msgspec.structs.replace(fence, dwell_s=86_400) for fence in WORLD.fences]
        await shop.put_catalogue(msgspec.to_builtins(msgspec.structs.replace(WORLD, fences=fences)))
        await shop.events(
            [
                Consent(uid="ann", ts=now_ms(), scope="sms", granted=True),
                Cart(uid="ann", ts=now_ms(), action="add", sku="beans"),
            ]
        )

        async def has_both() -> bool:
            try:
                known = (await shop.customer("ann"))["customer"]
            except Refused:
                return False
            return bool(known["cart"] and known["consents"])

        await eventually(has_both)
        await shop.events([walk(80)])
        await eventually(lambda: decisions(server, "ann"))
        before = await until_quiet(shop, tmp_path)

        said_in = tmp_path / "said"
        said_in.mkdir()
        code, out, said = await output_of(server.settings, said_in, "record", "--out", file)
        assert code == 0, said
        assert "personal data" in out
        assert mode_of(file) == 0o600
        code, out, said = await output_of(server.settings, said_in, "replay", "--from", "log", "--json")
        assert code == 0, said
        report = json.loads(out)
        assert (report["before"]["name"], report["before"]["decisions"], report["same"]) == ("live", 1, 1)
        assert (report["changed"], report["only_before"], report["only_after"]) == (0, 0, 0)
        written = tmp_path / "report.txt"
        tried = ("replay", "--from", file, "--rules", str(rules), "--out", str(written))
        code, out, said = await output_of(server.settings, said_in, *tried)
        assert (code, out) == (0, ""), said
        assert "1 difference: 0 changed, 1 only in current, 0 only in new; 0 the same" in written.read_text()
        assert mode_of(written) == 0o600
        # The newer spelling is the same command.
        code, out, said = await output_of(
            server.settings, said_in, "promotions", "what-if", file, "--rules", str(rules)
        )
        assert (code, out) == (0, written.read_text()), said
        asked = ("abandoned", "--customer", "ann")
        code, out, said = await output_of(server.settings, said_in, "promotions", "explain", *asked)
        assert code == 0, said
        # She could not be reached, and what nobody saw counts for no cap.
        assert "abandoned for ann: nothing stops it now" in out
        assert "walk_past at store graben, fence near" in out
        assert "1 \u00d7 won                  It won." in out
        assert await stored(tmp_path) == before

        await shop.events([walk(500)])
        await shop.events([walk(80)])

        async def two() -> bool:
            return len(await decisions(server, "ann")) == 2

        await eventually(two)
        await until_quiet(shop, tmp_path)
    # The server has ended: the store is started for as long as it is read.
    code, out, said = await output_of(server.settings, said_in, "replay", "--from", "log", "--json")
    assert code == 0, said
    report = json.loads(out)
    assert (report["before"]["decisions"], report["same"]) == (2, 2)


async def test_what_is_wrong_is_said_in_a_line(tmp_path: Path) -> None:
    """Exit code 2 and what to do about it; no stack, and no file left behind."""
    (tmp_path / "damaged").write_text("not JSON\n")
    line = {"topic": "customers.carts", "partition": 0, "position": "1", "value": "{}", "arrived_ms": 5}
    (tmp_path / "fine").write_text(json.dumps(line))
    (tmp_path / "broken.yaml").write_text("stores: 5")
    settings = Server(tmp_path).settings
    said_in = tmp_path / "said"
    said_in.mkdir()

    async def refused(said: str, *arguments: str) -> None:
        code, out, error = await output_of(settings, said_in, *(part.format(folder=tmp_path) for part in arguments))
        assert (code, out) == (2, "")
        assert said in error
        assert "Traceback" not in error

    before = files_of(tmp_path)
    await asyncio.gather(
        refused("there is no data in", "record", "--out", "{folder}/x"),
        refused("'soon' is neither like", "record", "--out", "{folder}/x", "--since", "soon"),
        refused("there is no data in", "replay", "--from", "log", "--out", "{folder}/x"),
        refused("damaged:1", "replay", "--from", "{folder}/damaged"),
        refused("need --from log", "replay", "--from", "{folder}/damaged", "--since", "2h"),
        refused("give --world FILE", "replay", "--from", "{folder}/fine"),
        refused("broken.yaml", "replay", "--from", "{folder}/fine", "--rules", "{folder}"),
        refused("already", "replay", "--from", "{folder}/fine", "--out", "{folder}/fine"),
    )
    assert files_of(tmp_path) == before


def files_of(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def mode_of(file: Path | str) -> int:
    return stat.S_IMODE(Path(file).stat().st_mode)
