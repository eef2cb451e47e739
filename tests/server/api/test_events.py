"""Events in over HTTP."""

import json
from collections.abc import Callable

import httpx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.server.api.shop import Shop, key

Check = Callable[[httpx.Response, int], str]
FIX = {"type": "location", "id": "f-1", "uid": "anna", "ts": 1_749_999_999_000, "lat": 48.2, "lng": 16.4}


async def post(api: httpx.AsyncClient, body: object) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return await api.post("/v1/events", content=content, headers=key("intake"))


async def test_one_event(api: httpx.AsyncClient, shop: Shop) -> None:
    """An accepted event is in the log when it is answered."""
    response = await post(api, FIX)
    assert (response.status_code, response.json()) == (202, {"id": "f-1"})
    assert [(e.event_id, e.customer, e.ts) for e in shop.log] == [("f-1", "anna", 1_749_999_999_000)]


async def test_id_and_time_are_added(api: httpx.AsyncClient, shop: Shop) -> None:
    """An event without id and time gets an id, which is answered, and the time of now."""
    response = await post(api, {k: v for k, v in FIX.items() if k not in ("id", "ts")})
    assert response.status_code == 202
    assert len(response.json()["id"]) == 32
    assert (shop.log[0].id, shop.log[0].ts) == (response.json()["id"], shop.clock.now_ms())


async def test_the_future_is_refused(api: httpx.AsyncClient, shop: Shop, problem: Check) -> None:
    """A time more than a minute ahead is refused; exactly a minute is a fast clock."""
    ahead = shop.clock.now_ms() + 60_000
    assert (await post(api, FIX | {"ts": ahead})).status_code == 202
    assert problem(await post(api, FIX | {"ts": ahead + 1}), 400) == "event_from_the_future"
    assert len(shop.log) == 1


async def test_a_bad_event_is_a_problem(api: httpx.AsyncClient, shop: Shop, problem: Check) -> None:
    """Malformed JSON, NaN, wrong types, absurd positions and unknown types are refused with a reason."""
    bad = [b"", b"{", b"\xff\xfe", b"null", b"3", FIX | {"lat": "x"}, FIX | {"lat": 91}, FIX | {"type": "erase"}]
    bad += [json.dumps(FIX | {"lat": float("nan")}).encode(), b'{"a":' * 10_000, FIX | {"uid": "\ud800"}]
    for body in bad:
        assert problem(await post(api, body), 400) == "malformed_event"
    assert shop.log == []


async def test_one_bad_event_costs_the_others_nothing(api: httpx.AsyncClient, shop: Shop) -> None:
    """A batch is answered item by item, and every valid event of it is accepted."""
    response = await post(api, [FIX, {"type": "cart"}, FIX | {"id": "f-2"}, 7])
    assert response.status_code == 200
    body = response.json()
    assert (body["accepted"], body["ids"]) == (2, ["f-1", None, "f-2", None])
    assert [(r["index"], r["reason"]) for r in body["rejected"]] == [(1, "malformed_event"), (3, "malformed_event")]
    assert [e.id for e in shop.log] == ["f-1", "f-2"]


async def test_batch_of_all_good(api: httpx.AsyncClient, shop: Shop) -> None:
    """A batch in which all is well is 202, up to 1,000 events, and so is an empty one."""
    small = {"type": "action", "uid": "anna", "action": "app_open"}
    response = await post(api, [small] * 1_000)
    assert (response.status_code, response.json()["accepted"], len(shop.log)) == (202, 1_000, 1_000)
    assert (await post(api, b" \n[]")).json() == {"accepted": 0, "ids": [], "rejected": []}


async def test_batch_limits(api: httpx.AsyncClient, shop: Shop, problem: Check) -> None:
    """1,001 events, or an array that is no JSON, are refused as a whole."""
    assert problem(await post(api, [1] * 1_001), 400) == "batch_too_large"
    assert problem(await post(api, b"[1,"), 400) == "malformed_batch"
    assert shop.log == []


async def test_one_event_has_a_size(api: httpx.AsyncClient, shop: Shop, problem: Check) -> None:
    """An event that the log would refuse for its size is refused here, and alone."""
    big = FIX | {"padding": "x" * 65_536}
    assert problem(await post(api, big), 400) == "event_too_large"
    body = (await post(api, [big, FIX])).json()
    assert (body["accepted"], body["rejected"][0]["reason"]) == (1, "event_too_large")


async def test_the_log_is_away(api: httpx.AsyncClient, shop: Shop, problem: Check) -> None:
    """Nothing is acknowledged that isn't in the log: 503, when to come back, and nothing about the inside."""
    shop.away = True
    for body in (FIX, [FIX]):
        response = await post(api, body)
        assert problem(response, 503) == "unavailable"
        assert int(response.headers["retry-after"]) >= 1
        assert "10.0.0.1" not in response.text


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)
_NEARLY = st.builds(lambda extra: FIX | extra, st.dictionaries(st.sampled_from([*FIX, "accuracy", "items"]), _JSON))
_BODY = st.binary(max_size=200) | st.builds(
    lambda value: json.dumps(value).encode(), _JSON | _NEARLY | st.lists(_JSON | _NEARLY, max_size=5)
)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(body=_BODY)
async def test_no_body_breaks_it(api: httpx.AsyncClient, shop: Shop, body: bytes) -> None:
    """Whatever is sent: accepted, or refused with a reason; and what is answered as accepted is in the log."""
    shop.log.clear()
    response = await post(api, body)
    assert response.status_code in (200, 202, 400), response.text
    if response.status_code != 400:
        answer = response.json()
        accepted = [answer["id"]] if "id" in answer else [i for i in answer["ids"] if i is not None]
        assert [e.id for e in shop.log] == accepted
