"""The model registry over HTTP: upload, list, and what each model is used for.

A model is uploaded as a ZIP file of its files. It is checked before it is kept, and used only when it is given a role.
"""

import asyncio
import io
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Literal

import msgspec
from fastapi import APIRouter, Depends, Request, Response

from models.features.base import Kind
from models.features.sets import SETS
from models.manifest import CARD_FILE, MANIFEST_FILE, MAX_BYTES, Manifest, Probability
from models.registry import Roles
from nearcast.errors import InputError, NotFound
from server.api.auth import Allow, Behind, Key
from server.api.bodies import accepts, answer, checked_id, read
from server.api.services import Services
from server.model_registry import Change, Entry

router = APIRouter(tags=["models"])

#: Of an upload: as much as its files may have together.
UPLOAD_BYTES = sum(MAX_BYTES.values())
_ZIP = "application/zip"
_SHOWN_CHANGES = 50


class ModelView(msgspec.Struct, frozen=True, kw_only=True):
    """A model in the registry, and the roles it has now."""

    version: str
    kind: Kind
    roles: list[str]
    added_ms: int
    added_by: str
    bytes: int


class ModelsView(msgspec.Struct, frozen=True, kw_only=True):
    """All models, what each kind uses, and the last changes, newest first."""

    models: list[ModelView]
    kinds: Mapping[Kind, Roles]
    changes: list[Change]


class ModelDetails(msgspec.Struct, frozen=True, kw_only=True):
    """One model with its manifest, and its card in Markdown."""

    model: ModelView
    manifest: Manifest
    card: str


class Added(msgspec.Struct, frozen=True):
    """The version of what was uploaded."""

    version: str


class Role(msgspec.Struct, frozen=True, kw_only=True):
    """What a model is to be used for; `share` is the canary's share of the customers."""

    role: Literal["active", "shadow", "canary"]
    share: Probability | None = None


@router.post(
    "/v1/models",
    status_code=201,
    dependencies=[Depends(Allow("admin"))],
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                _ZIP: {
                    "schema": {"type": "string", "format": "binary"},
                    "examples": {
                        "from a shell": {
                            "value": "python3 -m zipfile -c model.zip DIR/*; curl --data-binary @model.zip ..."
                        }
                    },
                }
            },
        }
    },
)
async def post_model(request: Request, services: Behind, key: Key) -> Response:
    """Check a model and keep it: a ZIP file of `model.onnx`, `manifest.json`, `samples.json` and, if wanted, `CARD.md`.

    It gets no role by that. The same model again changes nothing.
    """
    content = await asyncio.to_thread(unpacked, await request.body())
    return answer(Added(await services.models.add(content, _who(services, key))), 201)


@router.get("/v1/models", dependencies=[Depends(Allow("admin"))])
async def get_models(services: Behind) -> Response:
    """Which models there are, and what each is used for. A kind that isn't listed uses what nearcast came with."""
    state = await services.models.state()
    return answer(
        ModelsView(
            models=[_view(version, entry, state.uses(version)) for version, entry in state.models.items()],
            kinds=state.roles,
            changes=await services.models.changes(_SHOWN_CHANGES),
        )
    )


@router.get("/v1/models/{version}", dependencies=[Depends(Allow("admin"))])
async def get_model(version: str, services: Behind) -> Response:
    """One model: manifest and card."""
    name = checked_id(version, "path.version")
    state = await services.models.state()
    if name not in state.models:
        raise NotFound("unknown_model", f"there is no model {name!r}")
    files = await services.models.files(name)
    return answer(
        ModelDetails(
            model=_view(name, state.models[name], state.uses(name)),
            manifest=msgspec.json.decode(files.content[MANIFEST_FILE], type=Manifest),
            card=files.content.get(CARD_FILE, b"").decode(errors="replace"),
        )
    )


@router.delete("/v1/models/{version}", dependencies=[Depends(Allow("admin"))])
async def delete_model(version: str, services: Behind, key: Key) -> Response:
    """Remove a model that has no role."""
    await services.models.remove(checked_id(version, "path.version"), _who(services, key))
    return Response(status_code=204)


@router.put(
    "/v1/models/{version}/role",
    dependencies=[Depends(Allow("admin"))],
    openapi_extra=accepts(
        Role, {"decide": Role(role="active"), "for a tenth of the customers": Role(role="canary", share=0.1)}
    ),
)
async def put_role(version: str, request: Request, services: Behind, key: Key) -> Response:
    """Let a model decide (`active`), decide for a share of the customers (`canary`), or only score (`shadow`)."""
    name, wanted, by = checked_id(version, "path.version"), await read(request, Role), _who(services, key)
    if (wanted.share is None) == (wanted.role == "canary"):
        raise InputError("malformed_body", "a canary has a share, and nothing else has one", "body.share")
    if wanted.role == "active":
        return answer(await services.models.activate(name, by))
    if wanted.share is None:
        return answer(await services.models.shadow(name, by))
    return answer(await services.models.canary(name, wanted.share, by))


@router.post("/v1/model-kinds/{kind}/rollback", dependencies=[Depends(Allow("admin"))])
async def rollback(kind: str, services: Behind, key: Key) -> Response:
    """Back to the model that was active before; once more, and it is undone."""
    return answer(await services.models.rollback(_kind(kind), _who(services, key)))


@router.post("/v1/model-kinds/{kind}/off", dependencies=[Depends(Allow("admin"))])
async def end_trials(kind: str, services: Behind, key: Key) -> Response:
    """End shadow and canary; the active model stays."""
    return answer(await services.models.off(_kind(kind), _who(services, key)))


def unpacked(body: bytes) -> dict[str, bytes]:
    """The files in a ZIP file, by name, in whatever folder they are. Raises `InputError`."""
    found: dict[str, bytes] = {}
    try:
        with zipfile.ZipFile(io.BytesIO(body)) as archive:
            for info in archive.infolist():
                name = PurePosixPath(info.filename).name
                if info.is_dir():
                    continue
                if name not in MAX_BYTES:
                    raise InputError(
                        "unknown_file", f"a model has no file {name!r}; it may have {', '.join(MAX_BYTES)}"
                    )
                if name in found:
                    raise InputError("malformed_body", f"{name} is in it twice")
                if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    # Python unpacks the others as a whole, however much that is.
                    raise InputError("malformed_body", f"{name} must be stored or deflated")
                with archive.open(info) as file:
                    found[name] = file.read(MAX_BYTES[name] + 1)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, ValueError) as error:
        # RuntimeError, with its kind NotImplementedError: encrypted, or packed in a way that Python doesn't know.
        raise InputError("malformed_body", f"this is no ZIP file that can be read: {error}") from None
    return found


def _view(version: str, entry: Entry, roles: list[str]) -> ModelView:
    return ModelView(
        version=version,
        kind=entry.kind,
        roles=roles,
        added_ms=entry.added_ms,
        added_by=entry.added_by,
        bytes=entry.bytes,
    )


def _kind(name: str) -> Kind:
    found = next((kind for kind in SETS if kind == name), None)
    if found is None:
        raise NotFound("unknown_kind", f"there are no models of kind {name!r}; there are {', '.join(SETS)}")
    return found


def _who(services: Services, key: str | None) -> str:
    """For the record: keys have no names, so the beginning of the key's hash."""
    caller = services.keys.caller(key) if key else None
    return f"key {caller.digest.hex()[:8]}" if caller else "unknown"
