"""The demo page's routes: its files, its scene with tokens, and its live channel. They exist in demo mode only.

The scene hands out gateway tokens without a login, which is why these routes must never exist elsewhere. It is kept in
memory: the demo's driver puts it at its start.
"""

from typing import cast

import msgspec
from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.staticfiles import StaticFiles
from starlette.types import Message, Receive, Scope, Send

from nearcast.errors import NotFound
from nearcast.events import Id
from server.api.auth import Allow, Behind
from server.api.bodies import Json, accepts, answer, read
from server.api.services import Services

router = APIRouter(tags=["demo"])

TOKEN_TTL_S = 3_600
LIVE_CHANNEL = "demo:live"
_PAGE_POLICY = (
    "default-src 'self'; connect-src 'self' ws: wss:; img-src 'self' data: blob:; style-src 'self' 'unsafe-inline'; "
    "worker-src 'self' blob:; frame-ancestors 'self'; base-uri 'none'"
)


class Scene(msgspec.Struct):
    """The parts of a scene that get tokens; everything else in it is passed through."""

    phones: list["Phone"] = []
    staff: "Tablet | None" = None
    live: Json | None = None


class Phone(msgspec.Struct):
    """A phone on the page; it shows what this customer gets."""

    customer: Id


class Tablet(msgspec.Struct):
    """The staff tablet on the page; it shows what this store's staff get."""

    store: Id


@router.put(
    "/v1/demo/scene",
    status_code=204,
    dependencies=[Depends(Allow("admin"))],
    openapi_extra=accepts(Scene, {"one phone": Scene(phones=[Phone("anna")], staff=Tablet("graben"))}),
)
async def put_scene(request: Request) -> Response:
    """Set the scene: any JSON object; `phones`, `staff` and `live` get tokens when it is read."""
    await read(request, Scene)
    request.app.state.scene = await read(request, dict[str, object])
    return Response(status_code=204)


@router.get("/demo/scene.json")
async def get_scene(request: Request, services: Behind) -> Response:
    """The scene, with fresh tokens."""
    scene = cast("Json | None", getattr(request.app.state, "scene", None))
    if scene is None:
        raise NotFound("no_scene", "the demo has not set its scene yet")
    return answer(_with_tokens(scene, services))


@router.post("/v1/demo/live", status_code=204, dependencies=[Depends(Allow("admin"))])
async def publish_live(request: Request, services: Behind) -> Response:
    """Publish JSON on the page's live channel."""
    await services.publish_demo(bytes(await read(request, msgspec.Raw)))
    return Response(status_code=204)


def mount_page(app: FastAPI, services: Services) -> None:
    """Serve the page's files under /demo/."""
    files = StaticFiles(directory=services.web_root, html=True)

    async def page(scope: Scope, receive: Receive, send: Send) -> None:
        async def with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"content-security-policy", _PAGE_POLICY.encode())]
            await send(message)

        await files(scope, receive, with_policy)

    app.mount("/demo", page)


def _with_tokens(scene: Json, services: Services) -> Json:
    known = msgspec.convert(scene, Scene)
    phones = cast("list[Json]", scene.get("phones", []))
    tokened: Json = {
        "phones": [
            entry | {"token": services.mint_token(phone.customer, "customer", [], TOKEN_TTL_S)}
            for entry, phone in zip(phones, known.phones, strict=True)
        ],
        "live": (known.live or {}) | {"token": services.mint_token("demo", "demo", [LIVE_CHANNEL], TOKEN_TTL_S)},
    }
    if known.staff is not None:
        token = services.mint_token(known.staff.store, "staff", [f"staff:{known.staff.store}"], TOKEN_TTL_S)
        tokened["staff"] = cast("Json", scene["staff"]) | {"token": token}
    return scene | tokened
