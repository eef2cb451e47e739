"""What if: a recording with the rules as they are, and with others; in which decisions the two differ."""

from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec

from models.features.base import Kind
from models.scorer import Scorer
from nearcast.errors import ConfigurationError, InputError, Unavailable
from offers.worldfile import WorldFile, check_references
from server.core import fold_rules_of, policy_of
from server.live_models import default_folder
from server.replay.live import open_live
from server.replay.player import Run, Setup, key_of, made_of, play
from server.replay.recording import Recorded, Recording
from server.replay.report import Report, compare, side_of, side_of_live
from server.settings import Settings
from server.world import build, template_faults
from server.world_files import read_worlds

_WORLD_FILES = (".yaml", ".yml", ".json", ".geojson")

#: The models that decide; others only predict.
_KINDS: tuple[Kind, ...] = ("redeem", "channel")

#: Told what is being done, and how many of how many records are done with.
Progress = Callable[[str, int, int], None]


async def what_if(
    recording: Recording,
    settings: Settings,
    *,
    world: Sequence[Path] = (),
    rules: Sequence[Path] = (),
    samples: int = 10,
    progress: Progress = lambda *_: None,
) -> Report:
    """Replay with the rules of the recording, or of `world`; then with the promotions of `rules`, and compare.

    Without `rules` the comparison is with what the live engine decided, as far as that is known. Raises `InputError`
    for files that can't be used, and what reaching the store raises where the recording has no world of its own.
    """
    tried = read_rules(rules) if rules else None
    current = await _world(recording, world)
    changed = with_rules(current, tried) if tried is not None else None
    setup = setup_of(settings, recording)
    with TemporaryDirectory(prefix="nearcast-replay-") as folder:

        async def run(name: str, items: WorldFile, earlier: Run | None = None) -> Run:
            return await play(
                recording,
                items,
                setup,
                Path(folder, name),
                lambda done: progress(name, done, recording.records_count),
                earlier,
            )

        baseline = await run("replay" if changed is None else "current rules", current)
        report = Report(
            records=recording.records_count,
            first_ms=recording.first_ms,
            last_ms=recording.last_ms,
            before=side_of("replay" if changed is None else "current", baseline),
        )
        if changed is not None:
            other = await run("new rules", changed, baseline)
            report = msgspec.structs.replace(report, after=side_of("new", other))
            return compare(report, baseline.decisions, other.decisions, samples)
    recorded = await _recorded(recording)
    if recorded is None:
        return report
    live = {key_of(decision): made_of(decision) for decision in recorded.decisions}
    report = msgspec.structs.replace(report, before=side_of_live(recorded, live), after=report.before)
    return compare(report, live, baseline.decisions, samples, recorded.kept_from)


def setup_of(settings: Settings, recording: Recording) -> Setup:
    """The engine as `server.roles.make_engine` sets it up."""
    return Setup(
        partitions=recording.header.partitions if recording.header else settings.partitions,
        scorers=tuple(
            Scorer.load(default_folder(kind, settings.model_dir), kind, budget_s=settings.model_budget_ms / 1000)
            for kind in _KINDS
        ),
        rules=fold_rules_of(settings),
        policy=policy_of(settings),
        batch_events=settings.batch_events,
    )


def read_rules(paths: Sequence[Path]) -> WorldFile:
    """World files, and all those in folders. Raises `InputError`, also if there is no promotion in them."""
    files: list[Path] = []
    for path in paths:
        files += sorted(each for each in path.iterdir() if each.suffix in _WORLD_FILES) if path.is_dir() else [path]
    found = read_worlds(files)
    if not found.promotions:
        names = ", ".join(str(path) for path in paths)
        raise InputError(
            "no_promotions", "there is no promotion in it; --rules takes those that replace the current", names
        )
    return found


def with_rules(current: WorldFile, rules: WorldFile) -> WorldFile:
    """The current world with these promotions in place of its own; other things are added, or replaced by their ids.

    Raises `InputError` for what the server would refuse.
    """
    changed = WorldFile(
        stores=list({store.id: store for store in (*current.stores, *rules.stores)}.values()),
        fences=list({fence.id: fence for fence in (*current.fences, *rules.fences)}.values()),
        products=list({product.sku: product for product in (*current.products, *rules.products)}.values()),
        promotions=rules.promotions,
        stock=list({(row.store, row.sku): row for row in (*current.stock, *rules.stock)}.values()),
    )
    known = set(check_references(current))
    problems = [problem for problem in check_references(changed) if problem not in known] + template_faults(rules)
    if problems:
        raise InputError("unknown_reference", "; ".join(problems[:20]))
    build(0, changed)
    return changed


async def _world(recording: Recording, files: Sequence[Path]) -> WorldFile:
    if files:
        return read_worlds(files)
    if recording.world is not None:
        return recording.world
    try:
        async with open_live() as live:
            return await live.world()
    except (ConfigurationError, Unavailable) as error:
        raise InputError(
            "no_world",
            f"the recording has no world, and there is no store to take one from ({error}); give --world FILE",
        ) from None


async def _recorded(recording: Recording) -> Recorded | None:
    if recording.recorded is not None:
        return recording.recorded
    try:
        async with open_live() as live:
            return await live.recorded(recording.records())
    except (ConfigurationError, Unavailable):
        return None
