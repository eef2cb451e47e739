"""`nearcast models`: which models there are, what each is used for; bring a model, try it, swap it, take it back."""

import getpass
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from models.features.base import Kind
from models.features.sets import SETS
from models.manifest import CARD_FILE, MANIFEST_FILE, read_files
from nearcast.clock import SystemClock
from server import settings as settings_module
from server.commands.session import fail, opened_store, run

if TYPE_CHECKING:
    # Imported late, where they are needed: other commands need not wait for onnxruntime.
    from models.registry import Roles
    from server.model_registry import ModelRegistry

_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
_KIND = click.Choice(list(SETS))
_SHOWN_CHANGES = 10


@click.group()
def models() -> None:
    """Models that decide: list, check, add, activate, try, roll back. Works with and without a running server.

    What is changed takes effect in every running process within a second or so, between two batches of events.
    """


@models.command("list")
@click.option("--json", "as_json", is_flag=True, help="One JSON object, for programs.")
def list_models(as_json: bool) -> None:
    """Which models there are, what each kind uses, and the last changes."""

    async def work(registry: "ModelRegistry") -> None:
        state, changes = await registry.state(), await registry.changes(_SHOWN_CHANGES)
        if as_json:
            click.echo(msgspec.json.encode({"state": state, "changes": changes}))
            return
        for kind in SETS:
            click.echo(f"{kind}: {_said(state.of(kind))}")
        for version, entry in sorted(state.models.items(), key=lambda item: item[1].added_ms):
            roles = ", ".join(state.uses(version)) or "no role"
            click.echo(
                f"  {version}  {entry.kind}  {roles}  {entry.bytes} bytes, {_time(entry.added_ms)} {entry.added_by}"
            )
        for change in changes:
            click.echo(f"{_time(change.at_ms)}  {change.what}, by {change.by}")

    _on_registry(work)


@models.command()
@click.argument("version")
@click.option("--json", "as_json", is_flag=True, help="The manifest as JSON, for programs.")
def show(version: str, as_json: bool) -> None:
    """The card of one model, or its manifest."""

    async def work(registry: "ModelRegistry") -> None:
        files = await registry.files(version)
        card = files.content.get(CARD_FILE)
        if as_json or card is None:
            click.echo(files.content[MANIFEST_FILE])
        else:
            click.echo(card)

    _on_registry(work)


@models.command()
@click.argument("folder", type=_FOLDER)
def check(folder: Path) -> None:
    """Check the model in FOLDER as the server would; needs no server and changes nothing."""
    from server.model_registry import checked

    async def work() -> None:
        files = read_files(folder)
        settings = settings_module.load()
        began_s = time.perf_counter()
        scorer = await checked(files, settings.model_budget_ms / 1000)
        took_ms = (time.perf_counter() - began_s) * 1000
        click.echo(
            f"fine: {scorer.version}, kind {scorer.manifest.kind}, {len(scorer.manifest.features)} features; "
            f"loaded and tried in {took_ms:.0f} ms"
        )
        if scorer.manifest.base_rate is None:
            click.echo("note: the manifest has no base_rate; NEARCAST_MODEL_FALLBACK_SCORE stands in for it", err=True)
        if scorer.manifest.reference is None:
            click.echo("note: the manifest has no reference, so drift won't be measured", err=True)

    run(work())


@models.command()
@click.argument("folder", type=_FOLDER)
def add(folder: Path) -> None:
    """Check the model in FOLDER and keep it in the store. It gets no role by that. Prints its version."""

    async def work(registry: "ModelRegistry") -> None:
        click.echo(await registry.add(read_files(folder).content, _who(), str(folder)))

    _on_registry(work)


@models.command()
@click.argument("version")
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
def export(version: str, folder: Path) -> None:
    """Write the files of VERSION into FOLDER, for NEARCAST_MODEL_DIR of a replay, say, or for another installation."""

    found: dict[str, bytes] = {}
    if folder.is_dir() and any(folder.iterdir()):
        fail(f"{folder} is not empty: files of two models in one folder would be taken for one")

    async def work(registry: "ModelRegistry") -> None:
        found.update((await registry.files(version)).content)

    _on_registry(work)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in found.items():
            (folder / name).write_bytes(content)
    except OSError as error:
        fail(f"{folder} can't be written to: {error.strerror}")


@models.command()
@click.argument("version")
def remove(version: str) -> None:
    """Remove a model that has no role."""
    _on_registry(lambda registry: registry.remove(version, _who()))


@models.command()
@click.argument("version")
@click.option("--kind", type=_KIND, help='Only for VERSION "default": of which kind.')
def activate(version: str, kind: Kind | None) -> None:
    """Let VERSION decide; "default" is the model that nearcast came with, or NEARCAST_MODEL_DIR's."""
    _change(lambda registry: registry.activate(version, _who(), kind))


@models.command()
@click.argument("kind", type=_KIND)
def rollback(kind: Kind) -> None:
    """Back to the model of KIND that was active before; once more, and it is undone."""
    _change(lambda registry: registry.rollback(kind, _who()))


@models.command()
@click.argument("version")
def shadow(version: str) -> None:
    """Let VERSION score what the active model scores, and compare; it decides nothing."""
    _change(lambda registry: registry.shadow(version, _who()))


@models.command()
@click.argument("version")
@click.option(
    "--share", type=click.FloatRange(0, 1, min_open=True), required=True, help="Of the customers, above 0 up to 1."
)
def canary(version: str, share: float) -> None:
    """Let VERSION decide for a share of the customers, always the same ones."""
    _change(lambda registry: registry.canary(version, share, _who()))


@models.command()
@click.argument("kind", type=_KIND)
def off(kind: Kind) -> None:
    """End shadow and canary of KIND; the active model stays."""
    _change(lambda registry: registry.off(kind, _who()))


def _change(change: Callable[["ModelRegistry"], Awaitable["Roles"]]) -> None:
    async def work(registry: "ModelRegistry") -> None:
        click.echo(_said(await change(registry)))

    _on_registry(work)


def _on_registry(work: Callable[["ModelRegistry"], Awaitable[None]]) -> None:
    from server.model_registry import ModelRegistry

    async def opened() -> None:
        async with opened_store() as (settings, redis, _):
            await work(ModelRegistry(redis, SystemClock(), settings.model_budget_ms / 1000))

    run(opened())


def _said(roles: "Roles") -> str:
    parts = [f"active {roles.active}"]
    if roles.previous:
        parts.append(f"before it {roles.previous}")
    if roles.shadow:
        parts.append(f"shadow {roles.shadow}")
    if roles.canary:
        parts.append(f"canary {roles.canary} for {roles.share:g} of the customers")
    return ", ".join(parts)


def _who() -> str:
    """For the record of changes."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        # A container's user need not have a name.
        return "unknown"


def _time(at_ms: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at_ms / 1000))
