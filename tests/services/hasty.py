"""`nearcast serve` with other time limits of the gateway than the product's, for tests of what would take minutes.

    python -m tests.services.hasty '{"ping_interval_s": 1}' serve

names fields of `GatewaySettings`; `check_every_s` and `dead_after_ms` are about nodes that notice that one of them has
died.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import server.roles
from channels.gateway import streams
from channels.gateway.hub import Hub
from channels.gateway.server import Gateway
from channels.gateway.settings import GatewaySettings
from server import cli
from tests.system.process import Server


class HastyServer(Server):
    """`limits` as above."""

    def __init__(self, folder: Path, limits: dict[str, float], **settings: str) -> None:
        super().__init__(folder, **settings)
        self.command = [sys.executable, "-m", __name__, json.dumps(limits), "serve"]


def main() -> None:
    limits = json.loads(sys.argv.pop(1))
    streams.NODE_DEAD_AFTER_MS = limits.pop("dead_after_ms", streams.NODE_DEAD_AFTER_MS)
    defaults = Hub.__init__.__kwdefaults__
    defaults["check_every_s"] = limits.pop("check_every_s", defaults["check_every_s"])

    class HastyGateway(Gateway):
        def __init__(self, settings: GatewaySettings, *others: Any) -> None:
            super().__init__(replace(settings, **limits), *others)

    server.roles.Gateway = HastyGateway  # type: ignore[misc]
    cli.main()


if __name__ == "__main__":
    main()
