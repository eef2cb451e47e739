"""How an engine comes to wake up after its partitions have moved."""

from signal import SIGCONT

from nearcast import keys
from tests.faults.evidence import stored_offsets
from tests.faults.rig import Rig
from tests.faults.traffic import PARTITIONS
from tests.system.process import eventually

#: A key of the store → its content.
Picture = dict[str, bytes]


async def let_an_engine_oversleep(rig: Rig, step: str, variant: str = "") -> list[str]:
    """One engine stops itself at a step of a batch, the other works all of its partitions off, and more; then it goes
    on. The keys of the store that have changed when everything is quiet again.
    """
    zombie, healthy = rig.add("zombie", "engine", variant=variant), rig.add("healthy", "engine", variant=variant)
    front = rig.add("front", "dispatcher", "api")
    await rig.start(zombie, front)
    town = rig.round()
    await rig.produce(town.sign_up)
    await rig.quiet()
    zombie.arm(step, 2, "stop")
    half = len(town.traffic) // 2
    await rig.produce(town.traffic[:half])
    await zombie.asleep()
    await rig.start(healthy)
    await rig.produce(town.traffic[half:])
    await rig.quiet()
    before, epochs = await _picture(rig), await rig.epochs()
    zombie.signal(SIGCONT)
    # It goes on with its commit, finds out, joins the group again: then every partition is dealt out anew.
    await eventually(lambda: rig.taken_over_since(epochs), within_s=60.0)
    await rig.quiet()
    after = await _picture(rig)
    changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    rig.history.note("awake", changed=changed)
    return changed


async def let_an_engine_wake_before_its_heir_commits(rig: Rig, variant: str = "") -> bool:
    """One engine stops itself before a commit; another takes its partitions over, and stops itself with its first batch
    in hand. The first goes on: whether its commit was taken. It looks like its heir's own, by all offsets.
    """
    sleeper = rig.add("sleeper", "engine", variant=variant)
    # Patient enough to keep its partitions while it is stopped.
    heir = rig.add("heir", "engine", variant=variant, session_ms=10_000)
    await rig.start(sleeper)
    town = rig.round()
    await rig.produce(town.sign_up)
    await rig.quiet(dispatched=False)
    sleeper.arm("before_commit", 2, "stop")
    heir.arm("fetched", 1, "stop")
    await rig.produce(town.traffic)
    await sleeper.asleep()
    assert "errorstat_FENCED" not in await rig.redis.info("errorstats")
    before, epochs = await stored_offsets(rig.redis), await rig.epochs()
    await heir.start()
    await heir.asleep()
    assert await rig.taken_over_since(epochs)
    sleeper.signal(SIGCONT)

    async def tried() -> bool:
        return "errorstat_FENCED" in await rig.redis.info("errorstats") or await stored_offsets(rig.redis) != before

    await eventually(tried, within_s=30.0)
    taken = await stored_offsets(rig.redis) != before
    rig.history.note("awake", taken=taken)
    heir.signal(SIGCONT)
    await rig.quiet(dispatched=False)
    return taken


async def _picture(rig: Rig) -> Picture:
    """All of the partitions but who owns and sweeps them and how far they have read; of the outbox, how many came.

    A sleeper may have been about to bring a due timer into the log. It may do so again, as any process may: the event
    has the same id, and moves the offsets only. Whether these are right is for the checkers.
    """
    found = {}
    for partition in range(PARTITIONS):
        left_out = {keys.epoch(partition), keys.catalogue_epoch(partition), keys.offsets(partition)}
        left_out.add(keys.sweeping(partition))
        async for name in rig.redis.scan_iter(match=f"{keys.PREFIX}{{{partition}}}:*", count=1_000):
            if name.decode() not in left_out | {keys.outbox(partition)}:
                found[name.decode()] = await rig.redis.dump(name) or b""
        outbox = await rig.redis.xinfo_stream(keys.outbox(partition))
        found[keys.outbox(partition)] = str(outbox["entries-added"]).encode()
    return found
