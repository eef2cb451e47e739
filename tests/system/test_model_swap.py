"""A model is swapped in a running server, over HTTP, while people walk in; and it stays after a kill."""

import asyncio
import io
import zipfile
from pathlib import Path
from typing import Any

import httpx
import msgspec

from nearcast.events import Consent, Location, Profile
from tests.models import onnx_files
from tests.server.town import LNG, WORLD, metres_north
from tests.system.process import KEYS, Server, eventually

PEOPLE = 20


def upload() -> bytes:
    """A model that anybody could have trained, as a ZIP file."""
    body = io.BytesIO()
    with zipfile.ZipFile(body, "w") as archive:
        for name, content in onnx_files.files_of(onnx_files.sound(), samples=onnx_files.samples_of()).items():
            archive.writestr(name, content)
    return body.getvalue()


async def test_a_model_is_swapped_while_people_walk_in(tmp_path: Path) -> None:
    """Everybody's way in is decided exactly once, the first by the shipped model and the last by the uploaded one; the
    metrics say which one that is, also after the server was killed and started again.
    """
    server = Server(tmp_path)
    async with (
        server,
        server.client() as admin,
        httpx.AsyncClient(
            base_url=server.url, headers={"Authorization": f"Bearer {KEYS['admin']}"}, trust_env=False
        ) as http,
    ):
        await admin.put_catalogue(msgspec.to_builtins(WORLD))

        async def entered(number: int) -> list[dict[str, Any]]:
            """The decisions about someone's way into the store."""
            found = (await http.get(f"/v1/customers/c{number}/decisions")).json()["decisions"]
            return [decision for decision in found if decision["moment"]["subject"] == "inside"]

        async def walk_in(number: int) -> None:
            uid = f"c{number}"
            await admin.events(
                [
                    Consent(id=f"{uid}-c", uid=uid, scope="websocket", granted=True),
                    Profile(id=f"{uid}-p", uid=uid, loyalty="gold"),
                ]
            )
            await admin.events([Location(id=f"{uid}-f", uid=uid, lat=metres_north(10), lng=LNG, accuracy_m=5.0)])

        async def crowd() -> None:
            for number in range(1, PEOPLE - 1):
                await walk_in(number)

        await walk_in(0)
        await eventually(lambda: entered(0))
        walking = asyncio.create_task(crowd())
        answer = await http.post("/v1/models", content=upload())
        assert answer.status_code == 201, answer.text
        version = answer.json()["version"]
        await http.put(f"/v1/models/{version}/role", json={"role": "active"})
        used = f'nearcast_model_roles{{kind="redeem",model="{version}",role="active"}} 1.0'

        async def is_used() -> bool:
            return used in await admin.metrics()

        await eventually(is_used)
        await walking
        await server.kill()
        await server.start()
        assert await is_used()
        await walk_in(PEOPLE - 1)
        await eventually(lambda: entered(PEOPLE - 1))
        versions = []
        for number in range(PEOPLE):
            (decision,) = await eventually(lambda number=number: entered(number))
            versions.append(decision["model_version"])
        assert versions[0].startswith("redeem-")
        assert versions[-1] == version
        assert {*versions} == {versions[0], version}
        listed = (await http.get("/v1/models")).json()
        assert listed["kinds"]["redeem"]["active"] == version
        assert await server.stop() == 0
    assert "Traceback" not in server.log
