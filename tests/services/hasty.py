"""`nearcast serve` with other time limits of the gateway than the product's, for tests of what would take minutes."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import server.roles
from channels.gateway import streams
from channels.gateway.server import Gateway
from channels.gateway.settings import GatewaySettings
from tests.services.forks import Fork, run_command
from tests.system.process import Server


class HastyServer(Server):
    """`limits` are fields of `GatewaySettings`; `dead_after_ms` is when the other nodes take one for dead."""

    def __init__(self, folder: Path, limits: Mapping[str, float], **settings: str) -> None:
        super().__init__(folder, **settings)
        self._limits = limits

    def fork(self) -> Fork:
        return Fork(_serve, self._limits, self.settings, self.log_file)


def _serve(limits: Mapping[str, float], settings: Mapping[str, str], log: Path) -> None:
    fields = dict(limits)
    streams.NODE_DEAD_AFTER_MS = int(fields.pop("dead_after_ms", streams.NODE_DEAD_AFTER_MS))

    class HastyGateway(Gateway):
        def __init__(self, settings: GatewaySettings, *others: Any) -> None:
            super().__init__(replace(settings, **fields), *others)  # type: ignore[arg-type]

    server.roles.Gateway = HastyGateway  # type: ignore[misc]
    run_command(settings, log, log, "serve")
