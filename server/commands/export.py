"""`nearcast export`: what the store holds, as files for other tools."""

import sys
from pathlib import Path

import click

from nearcast.clock import SystemClock
from server.commands.replay import Moment
from server.commands.session import fail, opened_store, run
from server.credentials import secrets_for


@click.group()
def export() -> None:
    """Write what the store holds to files for other tools. Works with and without a running server."""


@export.command("decisions")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), required=True, help="Parquet file to make.")
@click.option("--since", type=Moment(), help="Only moments from then on: 2026-05-01T09:00 (UTC), or 90m ago.")
@click.option("--until", type=Moment(), help="Only moments before then.")
@click.option("--with-customer-ids", is_flag=True, help="The real ids of customers and decisions, not keyed hashes.")
def export_decisions(out: Path, since: int | None, until: int | None, with_customer_ids: bool) -> None:
    """Every decision of the last 30 days with what else could have been done, the model's inputs, and what came of it.

    One row for each thing that a decision could have done, nothing included. Needs the `train` extra. The file is
    about people, if not by name: only you can read it, and an erasure does not reach it. docs/learning-loop.md
    describes the columns.
    """
    try:
        from server.export import DecisionExport, Wish
    except ImportError as error:
        fail(f"exporting needs the train extra (pip install 'nearcast[train]'): {error}")

    async def work() -> None:
        async with opened_store() as (settings, redis, _):
            secret = secrets_for(settings).coupon.encode()
            exporting = DecisionExport(redis, settings.partitions, secret, SystemClock().now_ms())
            with click.progressbar(
                length=1, label="decisions", file=sys.stderr, show_pos=True, show_eta=False, show_percent=False
            ) as bar:

                def progress(decisions: int) -> None:
                    bar.length = max(1, decisions)
                    bar.update(decisions - bar.pos)

                found = await exporting.write(out, Wish(since, until, with_customer_ids), progress)
        click.echo(f"{found.decisions} decisions about {found.customers} customers, {found.rows} rows, in {out}")
        for count, what in (
            (found.unreadable_decisions, "decisions could not be read and are left out"),
            (found.unreadable_customers, "customers' records could not be read: what came of their decisions is null"),
            (found.other_features, "decisions were made on other inputs than this release's: theirs are null"),
        ):
            if count:
                click.echo(f"note: {count} {what}", err=True)

    run(work())
