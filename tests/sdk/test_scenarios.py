"""What SDKs that we didn't write see of the gateway: the same scenarios for each of them."""

import signal
from typing import Any

import pytest

from tests.sdk.conftest import Stage
from tests.sdk.drivers import Refused
from tests.system.process import eventually


async def test_connect(stage: Stage) -> None:
    """A client with a good token is in, and subscribed to its own channel without asking."""
    client = await stage.client()
    assert await client.online() != ""
    await client.until("subscribed", own=False, channel=stage.channel, recovering=False)
    assert [each["event"] for each in client.log] == ["connecting", "connected", "subscribed"]


async def test_an_expired_token(stage: Stage) -> None:
    """The SDK is told, fetches another one, and is in."""
    client = await stage.client(stage.token(ttl_s=-60), stage.token())
    await client.online()
    assert len(client.said("token")) == 1
    assert client.said("disconnected") == []


async def test_a_bad_token(stage: Stage) -> None:
    """Nobody tries again with it."""
    client = await stage.client("no.token.atall")
    await client.do("connect")
    await client.until("disconnected", code=3500)
    assert client.said("connected") == []


async def test_refresh(stage: Stage) -> None:
    """Before the token ends the SDK brings another one, on the same connection: what it adds is there, what it lacks
    is gone.
    """
    taken, given = f"staff:{stage.user}-taken", f"staff:{stage.user}-given"
    client = await stage.client(stage.token(taken, ttl_s=2), stage.token(given))
    await client.online()
    await client.until("subscribed", channel=given, own=False)
    await client.until("unsubscribed", channel=taken, own=False)
    await stage.publish(taken, range(1, 2))
    await stage.publish(given, range(1, 2))
    await stage.publish(stage.channel, range(1, 2))
    await client.until("publication", channel=stage.channel)
    await client.until("publication", channel=given)
    assert client.data(taken) == []
    assert len(client.said("connecting")) == len(client.said("token")) == 1


async def test_subscribe(stage: Stage) -> None:
    """Public channels may be listened to by who asks, before or after connecting, and left; others not."""
    early, late = f"store:{stage.user}", f"zone:{stage.user}"
    client = await stage.client()
    await client.do("subscribe", channel=early)
    await client.online()
    await client.until("subscribed", own=True, channel=early)
    await client.do("subscribe", channel=late)
    await client.until("subscribed", own=True, channel=late)
    await client.do("subscribe", channel="customer:somebody-else")
    await client.until("unsubscribed", own=True, channel="customer:somebody-else", code=103)
    await stage.publish(early, range(1, 4))
    await client.until("publication", times=3, channel=early)
    await client.do("unsubscribe", channel=early)
    await client.until("unsubscribed", own=True, channel=early)
    await stage.publish(early, range(4, 6))
    await stage.publish(late, range(1, 2))
    await client.until("publication", channel=late)
    assert client.data(early) == [(1, 1), (2, 2), (3, 3)]


async def test_publication(stage: Stage) -> None:
    """All arrive, in order and once, whatever is in them, at each of the customer's devices."""
    phone, tablet = [await stage.client(), await stage.client()]
    for each in (phone, tablet):
        await each.online()
        await each.until("subscribed")
    await stage.streams.publish(stage.channel, '{"title":"Süßes \\u2028 \\n 🍰","list":[1,2.5,null,{}]}'.encode())
    await stage.publish(stage.channel, range(2, 101))
    first = {"title": "Süßes \u2028 \n 🍰", "list": [1, 2.5, None, {}]}
    for each in (phone, tablet):
        await each.until("publication", times=100)
        assert each.data(stage.channel) == [(1, first), *((number, number) for number in range(2, 101))]


async def test_a_device_publishes(stage: Stage) -> None:
    """Staff write to their own store's channel; customers to none."""
    channel = f"staff:{stage.user}"
    staff = await stage.client(stage.token(channel, role="staff"))
    await staff.online()
    await staff.until("subscribed", channel=channel)
    await staff.do("publish", channel=channel, data={"note": "till 3"})
    await staff.until("publication", channel=channel, data={"note": "till 3"})
    customer = await stage.client()
    await customer.online()
    with pytest.raises(Refused) as refused:
        await customer.do("publish", channel=stage.channel, data={})
    assert refused.value.code == 103


async def test_recovery_after_a_cut(stage: Stage) -> None:
    """What was published while the network was away is there afterwards, in order and once, and it goes on live."""
    public = f"store:{stage.user}"
    client = await stage.client()
    await client.do("subscribe", channel=public)
    await client.online()
    await client.until("subscribed", channel=stage.channel)
    await client.until("subscribed", channel=public)
    for channel in (stage.channel, public):
        await stage.publish(channel, range(1, 4))
        await client.until("publication", times=3, channel=channel)
    await stage.proxy.stop()
    await client.until("connecting", times=2)
    for channel in (stage.channel, public):
        await stage.publish(channel, range(4, 24))
    await stage.proxy.start()
    for channel in (stage.channel, public):
        await client.until("subscribed", times=2, channel=channel)
        await stage.publish(channel, range(24, 27))
        await client.until("publication", times=26, channel=channel)
        assert client.data(channel) == [(number, number) for number in range(1, 27)]
        assert client.said("subscribed", channel=channel)[1].items() >= {"recovering": True, "recovered": True}.items()


async def test_recovery_past_the_window(stage: Stage) -> None:
    """More was published than is kept: that is said, nothing old is shown, and it goes on live."""
    public = f"store:{stage.user}"
    client = await stage.client()
    await client.do("subscribe", channel=public)
    await client.online()
    for channel in (stage.channel, public):
        await client.until("subscribed", channel=channel)
    await stage.proxy.stop()
    await client.until("connecting", times=2)
    for channel in (stage.channel, public):
        for number in range(1, 11):
            await stage.forgetful.publish(channel, b"%d" % number)
    await stage.proxy.start()
    for channel in (stage.channel, public):
        await client.until("subscribed", channel=channel, recovering=True, recovered=False)
        await stage.publish(channel, range(11, 12))
        await client.until("publication", channel=channel)
        assert client.data(channel) == [(11, 11)]


async def test_presence(stage: Stage) -> None:
    """A customer sees its own devices, staff their store's; who is in a shop's channel is not to be had."""
    phone, tablet = [await stage.client(), await stage.client()]
    ids = [await phone.online(), await tablet.online()]
    await tablet.until("subscribed")
    here = [[each, stage.user] for each in sorted(ids)]
    assert sorted(await phone.do("presence", channel=stage.channel)) == here
    assert await phone.do("presence_stats", channel=stage.channel) == [2, 1]
    await tablet.do("disconnect")

    async def alone() -> bool:
        return bool(await phone.do("presence", channel=stage.channel) == [[ids[0], stage.user]])

    await eventually(alone)
    for channel, code in (("store:graben", 108), ("customer:somebody-else", 103)):
        for method in ("presence", "presence_stats"):
            with pytest.raises(Refused) as refused:
                await phone.do(method, channel=channel)
            assert refused.value.code == code


async def test_history(stage: Stage) -> None:
    """Forwards, backwards, from a position, only the position; what is not kept any more is refused."""
    client = await stage.client()
    await client.online()
    await client.until("subscribed")
    await stage.publish(stage.channel, range(1, 8))

    async def history(limit: int, **more: Any) -> Any:
        return await client.do("history", channel=stage.channel, limit=limit, **more)

    found = await history(-1)
    epoch = found["epoch"]
    assert found == {"epoch": epoch, "offset": 7, "publications": [[number, number] for number in range(1, 8)]}
    assert (await history(0)) == {"epoch": epoch, "offset": 7, "publications": []}
    assert (await history(2))["publications"] == [[1, 1], [2, 2]]
    assert (await history(2, reverse=True))["publications"] == [[7, 7], [6, 6]]
    assert (await history(3, since={"offset": 4, "epoch": epoch}))["publications"] == [[5, 5], [6, 6], [7, 7]]
    for channel, since, code in (
        (stage.channel, {"offset": 4, "epoch": "gone"}, 112),
        ("customer:somebody-else", None, 103),
    ):
        with pytest.raises(Refused) as refused:
            await client.do("history", channel=channel, limit=3, since=since)
        assert refused.value.code == code


async def test_rpc(stage: Stage) -> None:
    """Answers and errors reach who asked, with the codes of HTTP."""
    client = await stage.client()
    await client.online()
    fix = {"type": "location", "uid": stage.user, "lat": 48.2, "lng": 16.37, "accuracy_m": 5.0}
    assert set(await client.do("rpc", name="event", data=fix)) == {"id"}
    for name, data, code in (
        ("nothing.like.it", {}, 404),
        ("open", {"message": 1}, 400),
        ("event", {**fix, "lat": 200}, 400),
        ("event", {**fix, "uid": "somebody-else"}, 403),
    ):
        with pytest.raises(Refused) as refused:
            await client.do("rpc", name=name, data=data)
        assert (name, refused.value.code) == (name, code)


async def test_two_commands_in_a_frame(stage: Stage) -> None:
    """Each has its own answer, good or bad."""
    client = await stage.client()
    await client.online()
    answers = await client.do("rpcs", calls=[("wishlist.list", {}), ("nothing.like.it", {}), ("wishlist.list", {})])
    assert answers == [{"result": {"items": []}}, {"error": 404}, {"result": {"items": []}}]


async def test_sent_away_and_back(stage: Stage) -> None:
    """After 3001 the SDK comes back by itself and misses nothing."""
    client = await stage.client()
    await client.online()
    await client.until("subscribed")
    await stage.publish(stage.channel, range(1, 3))
    await client.until("publication", times=2)
    await stage.streams.disconnect(stage.user, 3001, "shutdown")
    await client.until("connecting", code=3001)
    await stage.publish(stage.channel, range(3, 5))
    await client.until("connected", times=2)
    await client.until("subscribed", recovering=True, recovered=True)
    await client.until("publication", times=4)
    assert client.data(stage.channel) == [(number, number) for number in range(1, 5)]


async def test_sent_away_for_good(stage: Stage) -> None:
    """After 3503 the SDK stays away, and another customer's doesn't notice."""
    client = await stage.client()
    await client.online()
    await client.until("subscribed")
    await stage.streams.disconnect(f"{stage.user}-other", 3503, "force disconnect")
    await stage.publish(stage.channel, range(1, 2))
    await client.until("publication")
    await stage.streams.disconnect(stage.user, 3503, "force disconnect")
    await client.until("disconnected", code=3503)
    assert len(client.said("connecting")) == 1


async def test_a_silent_server(stage: Stage) -> None:
    """A gateway that stands still sends no pings: the SDK gives the connection up, comes back and misses nothing."""
    client = await stage.client()
    await client.online()
    await client.until("subscribed")
    await stage.publish(stage.channel, range(1, 2))
    await client.until("publication")
    process = stage.server.process
    assert process is not None
    process.send_signal(signal.SIGSTOP)
    try:
        # 2: no ping.
        await client.until("connecting", code=2)
        await stage.publish(stage.channel, range(2, 5))
    finally:
        process.send_signal(signal.SIGCONT)
    await client.until("connected", times=2)
    await client.until("publication", times=4)
    assert client.data(stage.channel) == [(number, number) for number in range(1, 5)]
    assert client.said("subscribed")[-1]["recovered"] is True


async def test_withdraw(stage: Stage) -> None:
    """What is taken back is taken back from who has it, and never reaches who was away; that is no loss."""
    here, away = [await stage.client(), await stage.client()]
    for each in (here, away):
        await each.online()
        await each.until("subscribed")
    await away.do("disconnect")
    await stage.streams.publish_once(stage.channel, "m1", b'"milk"')
    await stage.publish(stage.channel, range(2, 3))
    await here.until("publication", times=2)
    assert await stage.streams.withdraw(stage.channel, "m1", b'"no milk"')
    await here.until("publication", times=3)
    assert here.data(stage.channel) == [(1, "milk"), (2, 2), (3, "no milk")]
    await stage.proxy.stop()
    await stage.proxy.start()
    await away.do("connect")
    await away.until("connected", times=2)
    await away.until("publication", times=2)
    assert away.data(stage.channel) == [(2, 2), (3, "no milk")]
