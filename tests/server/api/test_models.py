"""The model registry over HTTP: uploads that are refused, roles, and the way back."""

import io
import zipfile
from collections.abc import Callable, Mapping

import httpx

from models.manifest import CARD_FILE, MANIFEST_FILE, MODEL_FILE
from models.registry import DEFAULT
from tests.models import onnx_files
from tests.server.api.shop import KEYS

ADMIN = {"Authorization": f"Bearer {KEYS['admin']}"}
Check = Callable[[httpx.Response, int], str]


def own(shift: float = 0.0, **more: object) -> dict[str, bytes]:
    """The files of a model; another one for another shift."""
    return onnx_files.files_of(onnx_files.sound("pair", shift=shift), samples=onnx_files.samples_of(shift), **more)


def zipped(files: Mapping[str, bytes], folder: str = "", packed: int = zipfile.ZIP_DEFLATED) -> bytes:
    body = io.BytesIO()
    with zipfile.ZipFile(body, "w", packed) as archive:
        for name, content in files.items():
            archive.writestr(f"{folder}{name}", content)
    return body.getvalue()


async def test_over_http(api: httpx.AsyncClient, problem: Check) -> None:
    """Upload, list, show, give roles, take back, remove; who did it is noted by key, not by its text."""
    api.headers.update(ADMIN)
    uploads = [own(0.1) | {CARD_FILE: b"# Mine"}, own(0.2)]
    one, two = [
        (await api.post("/v1/models", content=zipped(files, folder))).json()["version"]
        for files, folder in zip(uploads, ("", "my models/"), strict=True)
    ]
    assert (await api.put(f"/v1/models/{one}/role", json={"role": "active"})).json()["active"] == one
    canary = await api.put(f"/v1/models/{two}/role", json={"role": "canary", "share": 0.25})
    assert (canary.json()["canary"], canary.json()["share"]) == (two, 0.25)
    shown = (await api.get(f"/v1/models/{one}")).json()
    assert (shown["card"], shown["model"]["roles"], shown["manifest"]["kind"]) == ("# Mine", ["active"], "redeem")
    assert problem(await api.delete(f"/v1/models/{two}"), 409) == "model_in_use"
    assert (await api.put(f"/v1/models/{two}/role", json={"role": "shadow"})).json()["shadow"] == two
    assert (await api.post("/v1/model-kinds/redeem/off")).json()["shadow"] == ""
    assert (await api.post("/v1/model-kinds/redeem/rollback")).json()["active"] == DEFAULT
    assert (await api.delete(f"/v1/models/{two}")).status_code == 204
    listed = (await api.get("/v1/models")).json()
    assert [(model["version"], model["roles"]) for model in listed["models"]] == [(one, ["previous"])]
    assert listed["kinds"]["redeem"] == {"active": DEFAULT, "previous": one, "shadow": "", "canary": "", "share": 0}
    (who,) = {change["by"] for change in listed["changes"]}
    assert who.startswith("key ")
    assert KEYS["admin"] not in who


async def test_what_http_refuses(api: httpx.AsyncClient, problem: Check) -> None:
    """A body that is no ZIP file or no model, roles without sense, names of nothing: a problem that says what."""
    api.headers.update(ADMIN)
    version = (await api.post("/v1/models", content=zipped(own()))).json()["version"]
    twice = io.BytesIO()
    with zipfile.ZipFile(twice, "w") as archive:
        archive.writestr(f"a/{MANIFEST_FILE}", b"{}")
        archive.writestr(f"b/{MANIFEST_FILE}", b"{}")
    bomb = zipped({MODEL_FILE: bytes(40 * 1024 * 1024)})
    assert len(bomb) < 100_000
    for body, status, reason in (
        (b"", 400, "malformed_body"),
        (b"PK\x03\x04" + bytes(100), 400, "malformed_body"),
        (zipped(own())[:-30], 400, "malformed_body"),
        # Python unpacks these as a whole: 360 bytes could fill the memory.
        (zipped(own(), packed=zipfile.ZIP_BZIP2), 400, "malformed_body"),
        (zipped(own(), packed=zipfile.ZIP_LZMA), 400, "malformed_body"),
        (twice.getvalue(), 400, "malformed_body"),
        (zipped({"../../etc/passwd": b""}), 400, "unknown_file"),
        (zipped({}), 400, "model_refused"),
        (zipped(own() | {MANIFEST_FILE: b"{}"}), 400, "model_refused"),
        (bomb, 400, "model_refused"),
        (bytes(24 * 1024 * 1024), 413, "body_too_large"),
    ):
        assert problem(await api.post("/v1/models", content=body), status) == reason
    role = f"/v1/models/{version}/role"
    for wrong in ({}, {"role": "boss"}, {"role": "canary"}, {"role": "active", "share": 0.1}):
        assert problem(await api.put(role, json=wrong), 400) == "malformed_body"
    assert problem(await api.put(role, json={"role": "canary", "share": 0}), 400) == "malformed_share"
    assert problem(await api.get("/v1/models/redeem-0"), 404) == "unknown_model"
    assert problem(await api.post("/v1/model-kinds/shoes/rollback"), 404) == "unknown_kind"
    assert problem(await api.post("/v1/model-kinds/redeem/rollback"), 409) == "no_previous_model"
    api.headers.update({"Authorization": f"Bearer {KEYS['staff']}"})
    assert problem(await api.post("/v1/models", content=zipped(own())), 403) == "forbidden"
