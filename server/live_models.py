"""The models of this process: follows the registry, and swaps what scores when that changes.

A model is loaded and tried beside the event loop and put in place with one assignment. What can't be loaded changes
nothing: the model before it goes on, or, at the start, the fallback score. Both are said loudly.
"""

import asyncio
import logging
from importlib import resources
from pathlib import Path

from redis.asyncio import Redis

from models.drift import Drift
from models.fallback import Guard, Limits
from models.features.base import Kind
from models.features.sets import SETS
from models.manifest import MANIFEST_FILE, read_files
from models.registry import DEFAULT, Roles, Serving
from models.scorer import Scorer
from nearcast import keys, metrics
from nearcast.clock import Clock
from nearcast.errors import ConfigurationError, NotFound, Unavailable
from server.model_registry import ModelRegistry, State, decoded, loaded
from server.store import reaching_store

logger = logging.getLogger("nearcast.server.models")

_POLL_S = 0.5
_TURN_S = 60.0
#: A model in use: its kind, since each has a default, and its version.
_Place = tuple[Kind, str]


class LiveModels:
    """Implements `models.registry.Models`."""

    def __init__(
        self, redis: Redis, registry: ModelRegistry, folder: Path | None, limits: Limits, clock: Clock
    ) -> None:
        self.registry = registry
        self._redis = redis
        self._folder = folder
        self._limits = limits
        self._clock = clock
        self._seen: bytes | str | None = None
        self._started = False
        self._guards: dict[_Place, Guard] = {}
        self._serving: dict[Kind, Serving] = {kind: Serving(Guard(None, limits, clock)) for kind in SETS}
        self._turned_at_s = clock.monotonic_s()
        self._shown: set[tuple[str, str]] = set()

    def serving(self, kind: Kind) -> Serving:
        """What scores now. The fallback for a kind that nothing is computed for."""
        return self._serving.get(kind) or Serving(Guard(None, self._limits, self._clock))

    async def start(self) -> None:
        """Load the defaults, then what the registry says. Raises `ConfigurationError` if the folder is wrong."""
        for kind in SETS:
            self._guards[kind, DEFAULT] = Guard(await self._default(kind), self._limits, self._clock)
            self._serving[kind] = Serving(self._guards[kind, DEFAULT])
        await self.refresh()

    async def run(self) -> None:
        """Follow the registry, and measure drift, for ever."""
        while True:
            await asyncio.sleep(_POLL_S)
            try:
                await self.refresh()
            except Unavailable as error:
                logger.warning("keeping the models: %s", error)
            if self._clock.monotonic_s() >= self._turned_at_s + _TURN_S:
                self._turned_at_s = self._clock.monotonic_s()
                self.measure()

    async def refresh(self) -> None:
        """Swap in what the registry says now, if that has changed and can be used. Raises `Unavailable`."""
        with reaching_store():
            found = await self._redis.get(keys.models())
        if self._started and found == self._seen:
            return
        try:
            state = decoded(found)
        except ConfigurationError as error:
            logger.error("keeping the models: %s", error)  # noqa: TRY400  its words say it all
            self._seen, self._started = found, True
            return
        for kind in SETS:
            await self._use(kind, state)
        self._seen, self._started = found, True
        self._show()

    def measure(self) -> None:
        """A minute is over: tell how far the rows of the last hour are from the training rows."""
        for serving in self._serving.values():
            for _, guard in serving.guards:
                if guard.drift is not None:
                    guard.drift.turn()
                    if (drift := guard.drift.measure()) is not None:
                        self._show_drift(guard.version, drift)

    async def _use(self, kind: Kind, state: State) -> None:
        roles, before = state.of(kind), self._serving[kind]
        faults: list[str] = []
        found = {
            role: await self._guard(kind, version, faults)
            for role, version in (("active", roles.active), ("canary", roles.canary), ("shadow", roles.shadow))
        }
        active = found["active"] or self._stand_in(roles, before, state)
        self._serving[kind] = Serving(active, canary=found["canary"], share=roles.share, shadow=found["shadow"])
        kept = {id(guard) for _, guard in self._serving[kind].guards}
        for place in [place for place, guard in self._guards.items() if place[0] == kind and id(guard) not in kept]:
            if place[1] != DEFAULT:
                del self._guards[place]
        metrics.MODEL_BROKEN.labels(kind).set(1 if faults or active.scorer is None else 0)
        for fault in faults:
            logger.error("%s; model %s scores instead. See `nearcast models list`", fault, active.version)
        if active is not before.active:
            logger.info("kind %s: model %s decides, before it %s", kind, active.version, before.active.version)

    async def _guard(self, kind: Kind, version: str, faults: list[str]) -> Guard | None:
        """A model in use; None if there is none, or if it can't be used."""
        if not version:
            return None
        known = self._guards.get((kind, version))
        if known is None:
            try:
                files = await self.registry.files(version)
                known = Guard(await loaded(files, kind, self._limits.budget_s), self._limits, self._clock)
            except (ConfigurationError, NotFound) as error:
                faults.append(f"model {version} can't be used: {error}")
                return None
            self._guards[kind, version] = known
        return known

    def _stand_in(self, roles: Roles, before: Serving, state: State) -> Guard:
        """For an active model that can't be used: what decided before or, at the start, the fallback score."""
        if self._started:
            return before.active
        entry = state.models.get(roles.active)
        if entry is None or entry.base_rate is None:
            return Guard(None, self._limits, self._clock)
        return Guard(None, self._limits._replace(fallback_score=entry.base_rate), self._clock)

    async def _default(self, kind: Kind) -> Scorer | None:
        folder = default_folder(kind, self._folder)
        try:
            return await loaded(read_files(folder), kind, self._limits.budget_s)
        except ConfigurationError as error:
            if self._folder is not None and folder.is_relative_to(self._folder):
                raise
            logger.error(  # noqa: TRY400  its words say it all
                "there is no model of kind %s, the fallback score %g serves: %s. `nearcast models add` brings one",
                kind,
                self._limits.fallback_score,
                error,
            )
            return None

    def _show(self) -> None:
        """Metrics for the models in use, and none for others."""
        metrics.MODEL_ROLES.clear()
        metrics.MODEL_SET_ASIDE.clear()
        versions = set()
        for kind, serving in self._serving.items():
            for role, guard in serving.guards:
                metrics.MODEL_ROLES.labels(kind, role, guard.version).set(1)
                metrics.MODEL_SET_ASIDE.labels(guard.version).set(guard.is_set_aside)
                versions.add(guard.version)
        for version, feature in [place for place in self._shown if place[0] not in versions]:
            self._shown.discard((version, feature))
            if feature:
                metrics.MODEL_PSI.remove(version, feature)
            else:
                metrics.MODEL_SCORE_SHIFT.remove(version)

    def _show_drift(self, version: str, drift: Drift) -> None:
        for feature, value in (*drift.psi.items(), ("score", drift.score_psi)):
            metrics.MODEL_PSI.labels(version, feature).set(value)
            self._shown.add((version, feature))
        metrics.MODEL_SCORE_SHIFT.labels(version).set(drift.score_shift)
        self._shown.add((version, ""))


def default_folder(kind: Kind, folder: Path | None) -> Path:
    """Where the model is that serves a kind as long as nobody has activated another.

    `folder` holds one model, or one for each of several kinds by its name. Raises `ConfigurationError` if it has none.
    """
    shipped = Path(str(resources.files("models").joinpath("artifacts", kind)))
    if folder is None:
        return shipped
    if (folder / MANIFEST_FILE).exists():
        return folder if read_files(folder).manifest.kind == kind else shipped
    if (folder / kind).is_dir():
        return folder / kind
    if not any((folder / known).is_dir() for known in SETS):
        raise ConfigurationError(f"NEARCAST_MODEL_DIR: there is no model in {folder}")
    return shipped
