"""The model registry in a real store, through code and the command line; and models that change under events."""

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import click.testing
import numpy as np
import pytest
from prometheus_client import REGISTRY
from redis.asyncio import Redis

from models.fallback import FALLBACK, Limits
from models.manifest import CARD_FILE, MANIFEST_FILE, MODEL_FILE
from models.registry import DEFAULT, Roles
from nearcast import keys
from nearcast.clock import ManualClock, SystemClock
from nearcast.decisions import Decision
from nearcast.errors import ConfigurationError, Conflict, InputError, NotFound, TooLarge
from nearcast.events import Consent, Event, Location, Profile
from nearcast.ids import CustomerId, place_of
from server import model_registry
from server.cli import main
from server.live_models import LiveModels
from server.log.base import EventLog
from server.log.streams import StreamsLog
from server.model_registry import ModelRegistry
from tests.models import onnx_files
from tests.models.onnx_files import mean_sigmoid
from tests.server.rig import PARTITIONS, SCORER, Bench, Committed, committed
from tests.server.town import LNG, metres_north

LIMITS = Limits(fallback_score=0.125)
NOW = 1_795_000_000_000


def own(shift: float = 0.0, **more: object) -> dict[str, bytes]:
    """The files of a model; another one for another shift."""
    return onnx_files.files_of(onnx_files.sound("pair", shift=shift), samples=onnx_files.samples_of(shift), **more)


@pytest.fixture
def registry(redis: Redis) -> ModelRegistry:
    return ModelRegistry(redis, ManualClock())


@pytest.fixture
async def live(redis: Redis, registry: ModelRegistry) -> LiveModels:
    """The models of a process that has just started."""
    return await started(redis, registry)


async def started(redis: Redis, registry: ModelRegistry, folder: Path | None = None) -> LiveModels:
    models = LiveModels(redis, registry, folder, LIMITS, ManualClock())
    await models.start()
    return models


def metric(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


async def test_a_model_is_kept_as_it_came(registry: ModelRegistry) -> None:
    """Listed with who brought it; its files come back byte for byte; the same again changes nothing."""
    files = own(0.1, base_rate=0.2) | {CARD_FILE: b"# Mine"}
    version = await registry.add(files, "ann")
    assert await registry.add(files, "ben") == version
    state = await registry.state()
    assert (await registry.files(version)).content == files
    assert [*state.models] == [version]
    entry = state.models[version]
    assert (entry.kind, entry.added_by, entry.base_rate) == ("redeem", "ann", 0.2)
    assert entry.bytes == sum(map(len, files.values()))
    assert [(change.what, change.by) for change in await registry.changes()] == [(f"added {version}", "ann")]


async def test_what_is_no_sound_model_is_not_kept(registry: ModelRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tampered, incomplete, something else, another model under the same name, too many: nothing changes."""
    good = own()
    version = await registry.add(good, "ann")
    before = await registry.state()
    for files, fault in (
        (good | {MODEL_FILE: good[MODEL_FILE][:-1] + b"x"}, "not the same model"),
        ({MODEL_FILE: good[MODEL_FILE]}, "manifest.json can't be read"),
        (good | {"run.sh": b""}, "a model has no file 'run.sh'"),
        ({name: good[name] for name in (MODEL_FILE, MANIFEST_FILE)}, "samples.json can't be read: there is none"),
        (good | {MODEL_FILE: bytes(16 * 1024 * 1024 + 1)}, "larger than"),
        (onnx_files.files_of(onnx_files.looping(10**12)), "rows take more than"),
    ):
        with pytest.raises(InputError, match=fault):
            await registry.add(files, "ann")
    with pytest.raises(Conflict, match="already, with the same ONNX file and others"):
        await registry.add(own(algorithm="another manifest"), "ann")
    monkeypatch.setattr(model_registry, "MAX_MODELS", 1)
    with pytest.raises(TooLarge, match="there are 1 models"):
        await registry.add(own(0.5), "ann")
    assert await registry.state() == before
    assert (await registry.files(version)).content == good


async def test_roles_and_the_way_back(registry: ModelRegistry) -> None:
    """Activate, try in two ways, promote, roll back and forth; every step is noted with its author."""
    one, two, three = [await registry.add(own(shift), "ann") for shift in (0.1, 0.2, 0.3)]
    with pytest.raises(Conflict, match="no model of kind redeem was active before"):
        await registry.rollback("redeem", "ann")
    assert await registry.activate(one, "ben") == Roles(active=one, previous=DEFAULT)
    assert await registry.activate(one, "ben") == Roles(active=one, previous=DEFAULT)
    await registry.shadow(two, "ben")
    assert await registry.canary(three, 0.1, "ben") == Roles(
        active=one, previous=DEFAULT, shadow=two, canary=three, share=0.1
    )
    # A canary that has proved itself is one no longer.
    assert await registry.activate(three, "cem") == Roles(active=three, previous=one, shadow=two)
    assert await registry.off("redeem", "cem") == Roles(active=three, previous=one)
    assert await registry.rollback("redeem", "cem") == Roles(active=one, previous=three)
    assert await registry.rollback("redeem", "cem") == Roles(active=three, previous=one)
    assert await registry.activate(DEFAULT, "cem", "redeem") == Roles(active=DEFAULT, previous=three)
    said = [(change.by, change.what) for change in await registry.changes()]
    assert said[:2] == [("cem", "activated default"), ("cem", "rolled redeem back")]
    assert len(said) == 3 + 8, "what changes nothing is not noted"


async def test_roles_that_make_no_sense_are_refused(registry: ModelRegistry) -> None:
    """Unknown versions, the active one as its own trial, shares out of range, a default of no kind."""
    version = await registry.add(own(), "ann")
    await registry.activate(version, "ann")
    for wrong, error in (
        (registry.activate("redeem-0", "ann"), NotFound),
        (registry.shadow("redeem-0", "ann"), NotFound),
        (registry.remove("redeem-0", "ann"), NotFound),
        (registry.files("redeem-0"), NotFound),
        (registry.shadow(version, "ann"), Conflict),
        (registry.canary(version, 0.5, "ann"), Conflict),
        (registry.canary(version, 0.0, "ann"), InputError),
        (registry.canary(version, 1.5, "ann"), InputError),
        (registry.canary(version, float("nan"), "ann"), InputError),
        (registry.activate(DEFAULT, "ann"), InputError),
        (registry.activate(version, "ann", "buy_next"), Conflict),
    ):
        with pytest.raises(error):
            await wrong
    assert (await registry.state()).of("redeem") == Roles(active=version, previous=DEFAULT)


async def test_only_what_nobody_uses_can_be_removed(registry: ModelRegistry) -> None:
    """Neither what is active, was before, is tried, nor watches; then list and files forget it."""
    versions = [await registry.add(own(shift), "ann") for shift in (0.1, 0.2, 0.3, 0.4)]
    await registry.activate(versions[0], "ann")
    await registry.activate(versions[1], "ann")
    await registry.shadow(versions[2], "ann")
    await registry.canary(versions[3], 0.5, "ann")
    for version, role in zip(versions, ("previous", "active", "shadow", "canary"), strict=True):
        with pytest.raises(Conflict, match=f"in use: {role}"):
            await registry.remove(version, "ann")
    await registry.off("redeem", "ann")
    await registry.remove(versions[2], "ann")
    assert [*(await registry.state()).models] == [versions[0], versions[1], versions[3]]
    with pytest.raises(NotFound):
        await registry.files(versions[2])


async def test_changes_at_the_same_time_all_count(registry: ModelRegistry) -> None:
    """Ten people add models at once, and none is lost; the record of changes keeps a bounded number."""
    versions = await asyncio.gather(*(registry.add(own(number / 10), f"p{number}") for number in range(4)))
    assert {*(await registry.state()).models} == {*versions}
    assert len(await registry.changes()) == 4
    assert len(await registry.changes(2)) == 2


async def test_a_process_follows_the_registry(registry: ModelRegistry, live: LiveModels) -> None:
    """Starts with the shipped model, swaps to another, to a canary, and back; metrics say who has which role."""
    assert live.serving("redeem").active.version == SCORER.version
    one, two = [await registry.add(own(shift), "ann") for shift in (0.1, 0.2)]
    await registry.activate(one, "ann")
    await registry.canary(two, 0.5, "ann")
    before = live.serving("redeem")
    await live.refresh()
    serving = live.serving("redeem")
    assert before.active.version == SCORER.version, "a batch under way keeps what it began with"
    assert serving.canary is not None
    assert (serving.active.version, serving.canary.version, serving.share) == (one, two, 0.5)
    assert metric("nearcast_model_roles", kind="redeem", role="canary", model=two) == 1
    await registry.canary(two, 0.6, "ann")
    await live.refresh()
    assert live.serving("redeem").active is serving.active, "what it counts and remembers goes on"
    await registry.off("redeem", "ann")
    await registry.rollback("redeem", "ann")
    await live.refresh()
    assert live.serving("redeem").active is before.active
    assert live.serving("redeem").canary is None
    assert metric("nearcast_model_roles", kind="redeem", role="canary", model=two) == 0


async def test_a_model_that_is_broken_in_the_store_changes_nothing(
    redis: Redis, registry: ModelRegistry, live: LiveModels, caplog: pytest.LogCaptureFixture
) -> None:
    """A running process keeps its model, one that starts uses the base rate; both say so, and a rollback cures it."""
    version = await registry.add(own(0.1, base_rate=0.375), "ann")
    await registry.activate(version, "ann")
    await redis.hset(keys.model_files(version), MODEL_FILE, b"broken")
    await live.refresh()
    assert live.serving("redeem").active.version == SCORER.version
    assert metric("nearcast_model_broken", kind="redeem") == 1
    assert f"model {version} can't be used: model file {version}/model.onnx has SHA-256" in caplog.text
    other = await started(redis, registry)
    row = [[0.0] * onnx_files.WIDTH]
    assert other.serving("redeem").score(row, [CustomerId("c")]) == ([0.375], [FALLBACK])
    await redis.delete(keys.model_files(version))
    third = await started(redis, registry)
    assert third.serving("redeem").active.version == FALLBACK
    await registry.rollback("redeem", "ann")
    for process in (live, other, third):
        await process.refresh()
        assert process.serving("redeem").active.version == SCORER.version
    assert metric("nearcast_model_broken", kind="redeem") == 0


async def test_a_list_that_cannot_be_read_changes_nothing(
    redis: Redis, registry: ModelRegistry, live: LiveModels, caplog: pytest.LogCaptureFixture
) -> None:
    """A process goes on with what it has, and says so once; whoever wants to change something gets an error."""
    await redis.set(keys.models(), b"{")
    await live.refresh()
    await live.refresh()
    assert live.serving("redeem").active.version == SCORER.version
    assert caplog.text.count("the stored list of models can't be read") == 1
    with pytest.raises(ConfigurationError, match="can't be read"):
        await registry.activate(DEFAULT, "ann", "redeem")


async def test_a_folder_is_the_default(redis: Redis, registry: ModelRegistry, tmp_path: Path) -> None:
    """One model, or one folder for each kind; one that holds none, or a broken one, stops the start."""
    folder = onnx_files.write_into(tmp_path / "one", own(0.7))
    version = (await started(redis, registry, folder)).serving("redeem").active.version
    assert version.startswith("own-")
    onnx_files.write_into(tmp_path / "several" / "redeem", own(0.7))
    assert (await started(redis, registry, tmp_path / "several")).serving("redeem").active.version == version
    (folder / MODEL_FILE).write_bytes(b"broken")
    with pytest.raises(ConfigurationError, match=r"one/model\.onnx has SHA-256"):
        await started(redis, registry, folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigurationError, match=r"NEARCAST_MODEL_DIR: there is no model in .*empty"):
        await started(redis, registry, tmp_path / "empty")


async def test_drift_is_told_while_the_model_is_used(redis: Redis, registry: ModelRegistry) -> None:
    """After a minute and enough rows: a figure for each feature and the score; gone with the model."""
    from models.drift import reference_of

    rng = np.random.default_rng(1)
    then = rng.normal(0, 1, (3_000, onnx_files.WIDTH)).astype(np.float32)
    now = then[:1_500].copy()
    now[:, 1] += 2
    version = await registry.add(own(reference=reference_of(then, mean_sigmoid(then))), "ann")
    await registry.activate(version, "ann")
    live = await started(redis, registry)
    names = live.serving("redeem").active.scorer.manifest.features  # type: ignore[union-attr]  # it has one
    live.serving("redeem").score(now, [CustomerId("c")] * len(now))
    live.measure()
    figures = [metric("nearcast_model_psi", model=version, feature=name) for name in names]
    assert figures[1] > 1
    assert max(figures[:1] + figures[2:]) < 0.05
    shift = mean_sigmoid(now).mean() - mean_sigmoid(then).mean()
    assert metric("nearcast_model_score_shift", model=version) == pytest.approx(shift, abs=1e-5)
    assert metric("nearcast_model_psi", model=version, feature="score") > 0.1
    await registry.rollback("redeem", "ann")
    await live.refresh()
    assert REGISTRY.get_sample_value("nearcast_model_psi", {"model": version, "feature": names[1]}) is None


async def test_on_the_command_line(redis: Redis, valkey_url: str, tmp_path: Path) -> None:
    """Check, add, activate, try, list, roll back: what the registry then says is what was asked for."""
    secrets = dict.fromkeys(("TOKEN_SECRET", "COUPON_SECRET", "LINK_SECRET"), "x" * 32)
    environment = {f"NEARCAST_{name}": value for name, value in secrets.items()}
    environment |= {"NEARCAST_REDIS_URL": valkey_url, "NEARCAST_API_KEYS": '{"admin": "key"}'}

    async def run(*arguments: str, code: int = 0) -> str:
        runner = click.testing.CliRunner()
        found = await asyncio.to_thread(runner.invoke, main, ["models", *arguments], env=environment)
        assert found.exit_code == code, found.output
        return found.output.strip()

    folder = onnx_files.write_into(tmp_path / "mine", own(0.1) | {CARD_FILE: b"# Mine"})
    assert "fine: own-" in await run("check", str(folder))
    one = await run("add", str(folder))
    two = await run("add", str(onnx_files.write_into(tmp_path / "other", own(0.2))))
    assert await run("activate", one) == f"active {one}, before it default"
    assert "is active already" in await run("shadow", one, code=2)
    await run("canary", two, "--share", "0.1")
    assert f"canary {two} for 0.1 of the customers" in await run("list")
    assert await run("show", one) == "# Mine"
    await run("export", one, str(tmp_path / "copy"))
    assert {path.name: path.read_bytes() for path in (tmp_path / "copy").iterdir()} == {
        path.name: path.read_bytes() for path in folder.iterdir()
    }
    await run("off", "redeem")
    assert await run("rollback", "redeem") == f"active default, before it {one}"
    await run("remove", two)
    state = await ModelRegistry(redis, SystemClock()).state()
    assert ([*state.models], state.of("redeem")) == ([one], Roles(active=DEFAULT, previous=one))
    (folder / MODEL_FILE).write_bytes(b"broken")
    assert "mine/model.onnx has SHA-256" in await run("check", str(folder), code=2)
    assert "mine/model.onnx has SHA-256" in await run("add", str(folder), code=2)


# --- Under events.


@pytest.fixture
async def log(redis: Redis, valkey_url: str) -> AsyncIterator[EventLog]:
    log = StreamsLog(valkey_url, PARTITIONS)
    await log.start()
    yield log
    await log.stop()


def visits(people: range) -> list[Event]:
    """Gold members who come into the shop: one decision each."""
    found: list[Event] = []
    for number in people:
        uid, name = f"c{number}", f"e{number}"
        found.append(Consent(id=f"{name}-c", uid=uid, ts=NOW, scope="websocket", granted=True))
        found.append(Profile(id=f"{name}-p", uid=uid, ts=NOW, loyalty="gold"))
        found.append(Location(id=f"{name}-f", uid=uid, ts=NOW + 1, lat=metres_north(10), lng=LNG, accuracy_m=5.0))
    return found


def entries(found: Committed) -> dict[CustomerId, list[Decision]]:
    """Decisions about coming in, by customer."""
    made: dict[CustomerId, list[Decision]] = {}
    for decision in found.decisions.values():
        if decision.moment.trigger == "enter" and decision.moment.subject == "inside":
            made.setdefault(decision.customer, []).append(decision)
    return made


async def test_models_change_under_events(
    redis: Redis, log: EventLog, registry: ModelRegistry, live: LiveModels
) -> None:
    """Swapped back and forth and tried on some while events flow: each event is decided once, by one model, whose
    version stands in the decision and whose score that is.
    """
    shifts = (-0.4, 0.1, 0.6)
    versions = [await registry.add(own(shift), "ann") for shift in shifts]
    shift_of = dict(zip(versions, shifts, strict=True))
    await registry.activate(versions[0], "ann")
    await live.refresh()
    bench = Bench(redis, log, batch_events=20, models=live)
    async with bench.running():
        for step in range(6):
            await bench.send(*visits(range(step * 25, step * 25 + 25)))
            await registry.activate(versions[(step + 1) % 2], "ann")
            if step == 3:
                await registry.canary(versions[2], 0.3, "ann")
            await live.refresh()
        await bench.caught_up()
    made = entries(await committed(redis))
    assert {customer: len(decisions) for customer, decisions in made.items()} == {
        CustomerId(f"c{number}"): 1 for number in range(150)
    }
    used: dict[str, int] = {}
    for (decision,) in made.values():
        used[decision.model_version] = used.get(decision.model_version, 0) + 1
        for candidate in decision.candidates:
            if candidate.propensity is not None:
                row = np.array([candidate.inputs], dtype=np.float32)
                assert candidate.propensity == pytest.approx(
                    mean_sigmoid(row, shift_of[decision.model_version])[0], abs=1e-6
                )
        if decision.model_version == versions[2]:
            assert place_of("canary", versions[2], decision.customer) < 0.3
    assert {*used} == {*versions}, used


async def test_a_shadow_decides_nothing(
    redis: Redis, log: EventLog, registry: ModelRegistry, live: LiveModels, valkey_url: str
) -> None:
    """The same events with and without a shadow that thinks otherwise: the same decisions, to the last bit."""
    events = visits(range(40))
    outcomes = []
    shadow = await registry.add(own(2.0), "ann")
    files = await registry.files(shadow)
    for with_shadow in (False, True):
        await redis.flushdb()
        if with_shadow:
            await registry.add(files.content, "ann")
            await registry.shadow(shadow, "ann")
        await live.refresh()
        assert (live.serving("redeem").shadow is not None) == with_shadow
        own_log = StreamsLog(valkey_url, PARTITIONS)
        await own_log.start()
        bench = Bench(redis, own_log, models=live)
        async with bench.running():
            await bench.send(*events)
            await bench.caught_up()
        await own_log.stop()
        outcomes.append(entries(await committed(redis)))
    assert len(outcomes[0]) == 40
    assert outcomes[0] == outcomes[1]
    assert metric("nearcast_model_shadow_difference_count", model=shadow) >= 40


async def test_a_model_that_crashes_costs_no_event(
    redis: Redis, log: EventLog, registry: ModelRegistry, live: LiveModels, caplog: pytest.LogCaptureFixture
) -> None:
    """It fails on this shop's rows: every event is decided with the fallback score, and the log says what to do."""
    bench = Bench(redis, log, batch_events=10, models=live)
    with caplog.at_level(logging.ERROR, "nearcast.models"):
        async with bench.running():
            await bench.send(*visits(range(1)))
            await bench.caught_up()
            ((first,),) = entries(await committed(redis)).values()
            row = next(candidate.inputs for candidate in first.candidates if candidate.inputs)
            column = int(np.argmax(np.abs(row)))
            content = onnx_files.moody(trigger=row[column], crash_column=column)
            version = await registry.add(
                onnx_files.files_of(content, base_rate=0.25, samples=onnx_files.samples_of()), "ann"
            )
            await registry.activate(version, "ann")
            await live.refresh()
            await bench.send(*visits(range(1, 60)))
            await bench.caught_up()
    made = entries(await committed(redis))
    assert len(made) == 60
    del made[first.customer]
    for (decision,) in made.values():
        assert decision.model_version == FALLBACK
        assert {candidate.propensity for candidate in decision.candidates} <= {None, 0.25}
    assert f"model {version} is set aside for 60 s" in caplog.text
    assert "`nearcast models rollback redeem`" in caplog.text
