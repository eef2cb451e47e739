"""Publishing over HTTP to what everybody may listen to."""

from collections.abc import Callable

import httpx
import pytest

from tests.server.api.shop import Shop, key

Check = Callable[[httpx.Response, int], str]
NEWS = "/v1/channels/store:graben/publications"


async def test_publish(api: httpx.AsyncClient, shop: Shop) -> None:
    """Any JSON goes to a store's or a zone's channel; the answer is its place there."""
    for data in ({"text": "Bread\n\u2028ä", "n": 1.0}, [1], "x", None):
        answer = await api.post(NEWS, json={"data": data}, headers=key("admin"))
        assert (answer.status_code, answer.json()["epoch"]) == (200, "e")
    await api.post("/v1/channels/zone:a%2Fb%3Ac/publications", json={"data": 1, "key": "k"}, headers=key("admin"))
    last = await api.post(NEWS, json={"data": 1, "once": "o"}, headers=key("admin"))
    assert last.json()["offset"] == 6
    assert shop.publications == [
        ("store:graben", '{"text":"Bread\\n\u2028ä","n":1.0}'.encode(), "", None),
        ("store:graben", b"[1]", "", None),
        ("store:graben", b'"x"', "", None),
        ("store:graben", b"null", "", None),
        ("zone:a/b:c", b"1", "k", None),
        ("store:graben", b"1", "", "o"),
    ]


@pytest.mark.parametrize(
    "channel",
    ["customer:anna", "staff:graben", "demo:live", "store:", "store", "stores:graben", "store:a%7Fb", "zone:%7Bx%7D"],
)
async def test_other_channels(api: httpx.AsyncClient, shop: Shop, problem: Check, channel: str) -> None:
    """Nobody writes to a person's channel by hand, or to one whose name is no id."""
    answer = await api.post(f"/v1/channels/{channel}/publications", json={"data": 1}, headers=key("admin"))
    assert problem(answer, 404) == "unknown_channel"
    assert shop.publications == []


async def test_bad_publications(api: httpx.AsyncClient, shop: Shop, problem: Check) -> None:
    """Without data, with fields that there are not, too large, with both keys, or without the right API key."""
    for body in (b"{}", b'{"data":1,"ttl":5}', b'{"data":', b'{"data":1,"once":""}', b'{"data":1,"key":"\\u001f"}'):
        assert problem(await api.post(NEWS, content=body, headers=key("admin")), 400) == "malformed_body"
    both = await api.post(NEWS, json={"data": 1, "key": "k", "once": "o"}, headers=key("admin"))
    assert problem(both, 400) == "malformed_body"
    large = await api.post(NEWS, json={"data": "x" * 65_536}, headers=key("admin"))
    assert problem(large, 400) == "publication_too_large"
    for role in ("intake", "pos", "staff"):
        assert problem(await api.post(NEWS, json={"data": 1}, headers=key(role)), 403) == "forbidden"
    shop.away = True
    assert problem(await api.post(NEWS, json={"data": 1}, headers=key("admin")), 503) == "unavailable"
    assert shop.publications == []
