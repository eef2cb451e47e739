"""The command line: `nearcast --help`."""

import asyncio
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, TypeVar

import click

from nearcast import __version__
from nearcast.errors import ConfigurationError, InputError, NearcastError, Unavailable
from server import settings as settings_module
from server.commands.dead_letters import dead_letters
from server.commands.export import export
from server.commands.fences import fences
from server.commands.learning import evaluate_policy, evaluate_uplift
from server.commands.models import models
from server.commands.models_training import evaluate, train
from server.commands.promotions import promotions
from server.commands.replay import record, replay
from server.credentials import secrets_for

T = TypeVar("T")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="nearcast")
def main() -> None:
    """Real-time personalization and push notifications for retail.

    Settings come from environment variables NEARCAST_<NAME> or a TOML file named by NEARCAST_CONFIG;
    `nearcast reference settings` lists them all. With none set, `nearcast serve` needs nothing but this machine.
    """


@main.command()
def serve() -> None:
    """Run the server: HTTP API, WebSocket gateway, engine and dispatcher, or the roles in NEARCAST_ROLES."""
    settings = _settings()
    # Imported late: other commands, and a complaint about a setting, need not wait for all of it.
    from server.app import serve as run

    logging.basicConfig(
        level=settings.log_level.upper(), format="%(asctime)s %(levelname)-7s %(name)s  %(message)s", stream=sys.stderr
    )
    # Their own words would repeat URLs, and with them tokens.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    logging.getLogger("websockets").setLevel(logging.WARNING)
    try:
        asyncio.run(run(settings, click.echo))
    except* NearcastError as group:
        _fail(group.exceptions[0])


@main.command()
@click.argument("role", type=click.Choice(["intake", "pos", "admin", "staff"]))
def key(role: str) -> None:
    """Print the API key of ROLE, for use in `curl -H "Authorization: Bearer $(nearcast key intake)"`."""
    click.echo(
        _guarded(lambda: secrets_for(_settings()).api_keys.get(role)) or _fail_text(f"no key has the role {role}")
    )


@main.command()
@click.argument("subject")
@click.option("--role", type=click.Choice(["customer", "staff"]), default="customer", show_default=True)
@click.option("--channel", "channels", multiple=True, help="Channel to subscribe to, e.g. staff:graben. Repeatable.")
@click.option("--ttl-s", default=3_600, show_default=True, help="Seconds the token is valid.")
def token(subject: str, role: str, channels: tuple[str, ...], ttl_s: int) -> None:
    """Print a gateway token for SUBJECT (a customer id, or a member of staff), for trying things out."""
    from channels.gateway.tokens import Tokens
    from nearcast.clock import SystemClock

    secrets = _guarded(lambda: secrets_for(_settings()))
    click.echo(
        Tokens(secrets.token.encode(), SystemClock()).mint(
            subject, "staff" if role == "staff" else "customer", ttl_s=ttl_s, channels=channels
        )
    )


main.add_command(dead_letters)
main.add_command(evaluate)
main.add_command(evaluate_policy)
main.add_command(evaluate_uplift)
main.add_command(export)
main.add_command(fences)
main.add_command(models)
main.add_command(promotions)
main.add_command(record)
main.add_command(replay)
main.add_command(train)


@main.group()
def world() -> None:
    """World files: stores, fences, products, promotions and stock as YAML or JSON; fences also as .geojson."""


@world.command("check")
@click.argument("files", type=click.Path(exists=True, dir_okay=False, path_type=Path), nargs=-1, required=True)
def check_world(files: tuple[Path, ...]) -> None:
    """Check FILES, together, as the server would; names file, line and field of what is wrong."""
    from offers.worldfile import check_references, remarks
    from server.world import build, template_faults
    from server.world_files import read_worlds

    merged = _guarded(lambda: read_worlds(files))
    problems = [*check_references(merged), *template_faults(merged)]
    try:
        build(0, merged)
    except InputError as error:
        problems.append(str(error))
    for problem in problems:
        click.echo(problem, err=True)
    if problems:
        sys.exit(2)
    for remark in remarks(merged):
        click.echo(f"note: {remark}", err=True)
    click.echo(
        f"fine: {len(merged.stores)} stores, {len(merged.fences)} fences, {len(merged.products)} products, "
        f"{len(merged.promotions)} promotions, {len(merged.stock)} stock entries"
    )


@world.command("geojson")
@click.argument("files", type=click.Path(exists=True, dir_okay=False, path_type=Path), nargs=-1, required=True)
def print_geojson(files: tuple[Path, ...]) -> None:
    """Print the fences of FILES as GeoJSON, for a look at them in a map tool; `check` and the server read it back."""
    from geofence.geojson import fences_to_geojson
    from server.world_files import read_worlds

    click.echo(fences_to_geojson(_guarded(lambda: read_worlds(files)).fences))


@main.command()
@click.argument("what", type=click.Choice(["settings", "metrics", "promotions", "world"]))
def reference(what: str) -> None:
    """Print reference documentation made from the code.

    "world" is the JSON Schema of world files, "promotions" that of one promotion; for editors.
    """
    from server import reference as made

    pages = {"settings": made.settings, "metrics": made.metrics, "promotions": made.promotions, "world": made.world}
    click.echo(pages[what]())


def _settings() -> settings_module.Settings:
    return _guarded(settings_module.load)


def _guarded(call: Callable[[], T]) -> T:
    try:
        return call()
    except (ConfigurationError, Unavailable, InputError) as error:
        _fail(error)


def _fail(error: Exception) -> NoReturn:
    _fail_text(str(error))


def _fail_text(text: str) -> NoReturn:
    click.echo(f"nearcast: {text}", err=True)
    sys.exit(2)
