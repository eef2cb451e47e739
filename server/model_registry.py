"""The model registry in the store: which models there are, what each is used for, and who changed that when.

One document holds versions and roles and is written on condition that nobody else has changed it since it was read, so
two people who change roles at the same time can't leave a mixture. Files are written together with it and never
change: a version names its content. Processes that score follow the document (`server.live_models`).
"""

import asyncio
import logging
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future

import msgspec
from redis.asyncio import Redis
from redis.asyncio.client import Pipeline
from redis.exceptions import WatchError
from redis.typing import EncodableT, FieldT

from models.features.base import Kind
from models.manifest import MAX_BYTES, SAMPLES_FILE, Files, Probability, files_of
from models.registry import DEFAULT, Roles
from models.scorer import BUDGET_S, Scorer
from nearcast import keys
from nearcast.clock import Clock
from nearcast.errors import ConfigurationError, Conflict, InputError, NotFound, TooLarge, Unavailable
from server.store import raw, reaching_store, text

logger = logging.getLogger("nearcast.server.models")

MAX_MODELS = 50
#: Loading and trying a model may take this long, all together.
LOAD_WITHIN_S = 10.0
_TRIES = 10
_KEPT_CHANGES = 1_000


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """A model in the registry."""

    kind: Kind
    added_ms: int
    added_by: str
    bytes: int
    base_rate: Probability | None = None


class State(msgspec.Struct, frozen=True, kw_only=True):
    """All models by version, and what each kind uses them for; a kind that isn't named uses the default."""

    models: dict[str, Entry] = {}
    roles: dict[Kind, Roles] = {}

    def of(self, kind: Kind) -> Roles:
        return self.roles.get(kind, Roles())

    def uses(self, version: str) -> list[str]:
        """The roles that a version has."""
        return self.of(self.models[version].kind).of(version) if version in self.models else []


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One change: what, when, by whom."""

    at_ms: int
    by: str
    what: str


class ModelRegistry:
    """Reads and changes the registry. Changes take effect in every process within a second or so."""

    def __init__(self, redis: Redis, clock: Clock, budget_s: float = BUDGET_S) -> None:
        self._redis = redis
        self._clock = clock
        self._budget_s = budget_s

    async def state(self) -> State:
        """Raises `Unavailable`, and `ConfigurationError` if it can't be read."""
        with reaching_store():
            found = await self._redis.get(keys.models())
        return decoded(found)

    async def changes(self, limit: int = _KEPT_CHANGES) -> list[Change]:
        """The last changes, newest first."""
        with reaching_store():
            found = await self._redis.lrange(keys.model_changes(), 0, limit - 1)
        return [msgspec.json.decode(change, type=Change) for change in found]

    async def files(self, version: str) -> Files:
        """The files of a version. Raises `NotFound`."""
        with reaching_store():
            found = await self._redis.hgetall(keys.model_files(version))
        if not found:
            raise NotFound("unknown_model", f"there is no model {version!r}")
        return files_of(version, {text(name): raw(content) for name, content in found.items()})

    async def add(self, content: Mapping[str, bytes], by: str, source: str = "upload") -> str:
        """Check a model's files and keep them; its version. One that is there already is left as it is.

        Raises `InputError`, naming the file and what is wrong with it.
        """
        if unknown := sorted(content.keys() - MAX_BYTES.keys()):
            raise InputError("unknown_file", f"a model has no file {unknown[0]!r}; it may have {', '.join(MAX_BYTES)}")
        try:
            files = files_of(source, content)
            scorer = await checked(files, self._budget_s)
        except ConfigurationError as error:
            raise InputError("model_refused", str(error)) from None
        manifest, version = scorer.manifest, scorer.version
        entry = Entry(
            kind=manifest.kind,
            added_ms=self._clock.now_ms(),
            added_by=by,
            bytes=sum(map(len, files.content.values())),
            base_rate=manifest.base_rate,
        )
        if version in (await self.state()).models:
            if (await self.files(version)).content != files.content:
                raise Conflict("other_files", f"there is a model {version} already, with the same ONNX file and others")
            return version

        def added(state: State) -> State:
            if version in state.models:
                return state
            if len(state.models) >= MAX_MODELS:
                raise TooLarge("too_many_models", f"there are {len(state.models)} models; remove some first")
            return msgspec.structs.replace(state, models=state.models | {version: entry})

        def written(pipe: Pipeline) -> None:
            mapping: dict[FieldT, EncodableT] = {name: content for name, content in files.content.items()}  # noqa: C416  types
            pipe.hset(keys.model_files(version), mapping=mapping)

        await self._change(by, f"added {version}", added, written)
        return version

    async def remove(self, version: str, by: str) -> None:
        """Raises `NotFound`, or `Conflict` for one that has a role."""

        def removed(state: State) -> State:
            _entry(state, version)
            if uses := state.uses(version):
                raise Conflict("model_in_use", f"model {version} is in use: {', '.join(uses)}")
            return msgspec.structs.replace(
                state, models={name: entry for name, entry in state.models.items() if name != version}
            )

        await self._change(by, f"removed {version}", removed, lambda pipe: pipe.delete(keys.model_files(version)))

    async def activate(self, version: str, by: str, kind: Kind | None = None) -> Roles:
        """Let a version decide, or ("default", for a kind) the model that nearcast came with."""

        def activated(roles: Roles) -> Roles:
            if roles.active == version:
                return roles
            kept = _without(roles, version)
            return msgspec.structs.replace(kept, active=version, previous=roles.active)

        return await self._change_roles(version, kind, by, f"activated {version}", activated)

    async def rollback(self, kind: Kind, by: str) -> Roles:
        """Back to the version that was active before; once more, and it is undone. Raises `Conflict`."""

        def rolled_back(roles: Roles) -> Roles:
            if not roles.previous:
                raise Conflict("no_previous_model", f"no model of kind {kind} was active before")
            return msgspec.structs.replace(
                _without(roles, roles.previous), active=roles.previous, previous=roles.active
            )

        return await self._change_roles(DEFAULT, kind, by, f"rolled {kind} back", rolled_back)

    async def shadow(self, version: str, by: str) -> Roles:
        """Let a version score what the active one scores, for comparison. Raises `Conflict` for the active one."""

        def shadowed(roles: Roles) -> Roles:
            _refuse_active(roles, version)
            return msgspec.structs.replace(_without(roles, version), shadow=version)

        return await self._change_roles(version, None, by, f"{version} is a shadow", shadowed)

    async def canary(self, version: str, share: float, by: str) -> Roles:
        """Let a version decide for a share of the customers, above 0 and at most 1."""
        if not 0 < share <= 1:
            raise InputError("malformed_share", f"a share is above 0 and at most 1, not {share:g}")

        def in_part(roles: Roles) -> Roles:
            _refuse_active(roles, version)
            return msgspec.structs.replace(_without(roles, version), canary=version, share=share)

        return await self._change_roles(version, None, by, f"{version} is a canary for {share:g}", in_part)

    async def off(self, kind: Kind, by: str) -> Roles:
        """End shadow and canary of a kind; the active one stays."""

        def ended(roles: Roles) -> Roles:
            return msgspec.structs.replace(roles, shadow="", canary="", share=0.0)

        return await self._change_roles(DEFAULT, kind, by, f"ended shadow and canary of {kind}", ended)

    async def _change_roles(
        self, version: str, kind: Kind | None, by: str, what: str, change: Callable[[Roles], Roles]
    ) -> Roles:
        made: list[Roles] = []

        def changed(state: State) -> State:
            of = kind if version == DEFAULT else _entry(state, version).kind
            if of is None:
                raise InputError("unknown_kind", "say of which kind the default is to be used")
            if kind is not None and of != kind:
                raise Conflict("other_kind", f"model {version} is of kind {of}, not {kind}")
            made[:] = [change(state.of(of))]
            return msgspec.structs.replace(state, roles=state.roles | {of: made[0]})

        await self._change(by, what, changed)
        return made[0]

    async def _change(
        self,
        by: str,
        what: str,
        change: Callable[[State], State],
        write: Callable[[Pipeline], object] = lambda _: None,
    ) -> None:
        noted = Change(at_ms=self._clock.now_ms(), by=by, what=what)
        for _ in range(_TRIES):
            with reaching_store():
                async with self._redis.pipeline(transaction=True) as pipe:
                    await pipe.watch(keys.models())
                    before = decoded(await pipe.get(keys.models()))
                    after = change(before)
                    if after == before:
                        return
                    pipe.multi()  # type: ignore[no-untyped-call]  # so it is in redis-py
                    write(pipe)
                    pipe.set(keys.models(), msgspec.json.encode(after))
                    pipe.lpush(keys.model_changes(), msgspec.json.encode(noted))
                    pipe.ltrim(keys.model_changes(), 0, _KEPT_CHANGES - 1)
                    try:
                        await pipe.execute()
                    except WatchError:
                        continue
            logger.info("models: %s, by %s", what, by)
            return
        raise Unavailable("others keep changing the models")


def decoded(found: bytes | str | None) -> State:
    """Raises `ConfigurationError`."""
    try:
        return State() if found is None else msgspec.json.decode(found, type=State)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"the stored list of models can't be read: {error}") from None


async def checked(files: Files, budget_s: float) -> Scorer:
    """A model that the registry would take: as `loaded`, and there must be rows to compare with."""
    scorer = await loaded(files, None, budget_s)
    files.need(SAMPLES_FILE)
    return scorer


async def loaded(files: Files, kind: Kind | None, budget_s: float, within_s: float = LOAD_WITHIN_S) -> Scorer:
    """A model, loaded and tried in a thread of its own, so that nothing waits for one that hangs.

    Such a thread can't be ended from outside: it goes on until the model is through, if ever. Raises
    `ConfigurationError`.
    """
    made: Future[Scorer] = Future()

    def work() -> None:
        try:
            made.set_result(Scorer.of(files, kind, budget_s=budget_s))
        except ConfigurationError as error:
            made.set_exception(error)
        except BaseException as error:  # noqa: BLE001  whatever a file brings out must not end the process
            said = f"model {files.source} can't be loaded: {type(error).__name__}: {error}"
            made.set_exception(ConfigurationError(said))

    threading.Thread(target=work, name="model loader", daemon=True).start()
    outcome = asyncio.wrap_future(made)
    done, _ = await asyncio.wait({outcome}, timeout=within_s)
    if not done:
        # Whatever comes of it now is nobody's.
        outcome.add_done_callback(lambda late: late.cancelled() or late.exception())
        raise ConfigurationError(f"model {files.source} can't be loaded within {within_s:g} s")
    return outcome.result()


def _entry(state: State, version: str) -> Entry:
    if version not in state.models:
        raise NotFound("unknown_model", f"there is no model {version!r}")
    return state.models[version]


def _without(roles: Roles, version: str) -> Roles:
    """Roles without a shadow or canary of this version, which is about to get another role."""
    if roles.shadow == version:
        roles = msgspec.structs.replace(roles, shadow="")
    if roles.canary == version:
        roles = msgspec.structs.replace(roles, canary="", share=0.0)
    return roles


def _refuse_active(roles: Roles, version: str) -> None:
    if roles.active == version:
        raise Conflict("model_active", f"model {version} is active already")
