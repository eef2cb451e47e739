"""The Python client for retailers' own programs: `Nearcast` speaks HTTP, `Device` speaks to the gateway.

    async with Nearcast("http://127.0.0.1:8080", key) as nearcast:
        await nearcast.events([Location(id="e1", uid="ann", lat=48.2, lng=16.37)])

    async with Device("ws://127.0.0.1:8081/connection/websocket", token) as device:
        async for push in device:
            await device.ack(push)
            coupon = await device.apply(push)

Whatever the server refuses raises `Refused` with the problem's stable `reason`. What fails on the way raises
`nearcast.errors.Unavailable`: the call may be repeated, every one of them is idempotent (give events an id).
"""

from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import httpx
import msgspec

from clients.device import Coupon, Device, Dropped, Refused
from nearcast.errors import Unavailable
from nearcast.events import ConsentScope, Event

__all__ = ["Coupon", "Device", "Dropped", "Nearcast", "Receipt", "Refused", "Rejected"]


class Rejected(msgspec.Struct, frozen=True):
    """One event of a batch that was not taken, by its place in the batch."""

    index: int
    reason: str
    detail: str = ""


class Receipt(msgspec.Struct, frozen=True):
    """What became of a batch: an accepted event is durable in the log."""

    accepted: int
    rejected: list[Rejected] = []


class _Decisions(msgspec.Struct):
    decisions: list[dict[str, Any]]


class _Problem(msgspec.Struct):
    """RFC 9457, as far as a program needs it."""

    reason: str = "unknown"
    detail: str = ""


class Nearcast:
    """The HTTP API, with one key. Safe for concurrent calls from one event loop."""

    def __init__(self, base_url: str, key: str, *, timeout_s: float = 10.0) -> None:
        self._http = httpx.AsyncClient(
            base_url=base_url, headers={"Authorization": f"Bearer {key}"}, timeout=timeout_s, trust_env=False
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await self._http.aclose()

    async def events(self, batch: Sequence[Event]) -> Receipt:
        """Hand over at most 1,000 events and 256 KiB. Good events are taken even if others are refused."""
        return msgspec.json.decode(
            await self._call("POST", "/v1/events", msgspec.json.encode(list(batch))), type=Receipt
        )

    async def put_catalogue(self, document: dict[str, Any]) -> None:
        """Add or replace stores, fences, products, promotions and stock; all or nothing."""
        await self._call("PUT", "/v1/catalogue", msgspec.json.encode(document))

    async def set_consent(self, customer: str, scope: ConsentScope, *, granted: bool) -> None:
        """A withdrawal holds from the moment this returns."""
        body = msgspec.json.encode({"scope": scope, "granted": granted})
        await self._call("PUT", f"/v1/customers/{customer}/consents", body)

    async def customer(self, customer: str) -> dict[str, Any]:
        """Everything known of one customer."""
        return msgspec.json.decode(await self._call("GET", f"/v1/customers/{customer}"), type=dict[str, Any])

    async def decisions(self, customer: str, limit: int = 20) -> list[dict[str, Any]]:
        """The newest decisions about a customer, newest first, at most 100."""
        path = f"/v1/customers/{customer}/decisions?limit={limit}"
        return msgspec.json.decode(await self._call("GET", path), type=_Decisions).decisions

    async def message(self, customer: str, message: str) -> dict[str, Any]:
        """What became of a message."""
        body = await self._call("GET", f"/v1/customers/{customer}/messages/{message}")
        return msgspec.json.decode(body, type=dict[str, Any])

    async def erase(self, customer: str) -> None:
        await self._call("DELETE", f"/v1/customers/{customer}")

    async def validate(self, code: str) -> dict[str, Any]:
        """What a coupon is worth now, without using it up."""
        return msgspec.json.decode(await self._call("GET", f"/v1/coupons/{code}"), type=dict[str, Any])

    async def reserve(self, code: str, *, store: str, redemption_id: str, hold_s: float = 300.0) -> dict[str, Any]:
        """Keep a coupon for one purchase for so many seconds."""
        body = msgspec.json.encode({"store": store, "redemption_id": redemption_id, "hold_s": hold_s})
        return msgspec.json.decode(await self._call("POST", f"/v1/coupons/{code}/reserve", body), type=dict[str, Any])

    async def release(self, code: str, *, store: str, redemption_id: str) -> dict[str, Any]:
        """End a reservation; one that is over is no error."""
        body = msgspec.json.encode({"store": store, "redemption_id": redemption_id})
        return msgspec.json.decode(await self._call("POST", f"/v1/coupons/{code}/release", body), type=dict[str, Any])

    async def rollback(self, code: str, *, store: str, redemption_id: str) -> dict[str, Any]:
        """Call a redemption off; the coupon is as it was, the `redemption_id` is spent."""
        body = msgspec.json.encode({"store": store, "redemption_id": redemption_id})
        return msgspec.json.decode(await self._call("POST", f"/v1/coupons/{code}/rollback", body), type=dict[str, Any])

    async def redeem(
        self,
        code: str,
        *,
        store: str,
        redemption_id: str,
        revenue_cents: int | None = None,
        discount_cents: int | None = None,
    ) -> dict[str, Any]:
        """Use a coupon up. The same `redemption_id` again gives the same answer; another one is refused.

        The sums are what the purchase costs before the discount, and what the coupon takes off.
        """
        sums = {"revenue_cents": revenue_cents, "discount_cents": discount_cents}
        said = {name: cents for name, cents in sums.items() if cents is not None}
        body = msgspec.json.encode({"store": store, "redemption_id": redemption_id, **said})
        return msgspec.json.decode(await self._call("POST", f"/v1/coupons/{code}/redeem", body), type=dict[str, Any])

    async def ready(self) -> bool:
        """True if the server takes work. Never raises."""
        try:
            return (await self._http.get("/ready")).status_code == 200
        except httpx.HTTPError:
            return False

    async def footfall(self, store: str) -> dict[str, Any]:
        """How many people are in the store's fences now, as far as that may be shown."""
        return msgspec.json.decode(await self._call("GET", f"/v1/stores/{store}/footfall"), type=dict[str, Any])

    async def metrics(self) -> str:
        """The server's metrics in Prometheus' text format."""
        return (await self._call("GET", "/metrics")).decode()

    async def put_scene(self, scene: dict[str, Any]) -> None:
        """Demo only: what the page shows."""
        await self._call("PUT", "/v1/demo/scene", msgspec.json.encode(scene))

    async def show(self, live: dict[str, Any]) -> None:
        """Demo only: what moves on the page."""
        await self._call("POST", "/v1/demo/live", msgspec.json.encode(live))

    async def _call(self, method: str, path: str, body: bytes | None = None) -> bytes:
        headers = {"Content-Type": "application/json"} if body is not None else {}
        try:
            answer = await self._http.request(method, path, content=body, headers=headers)
        except httpx.HTTPError as error:
            raise Unavailable(f"{method} {path}: {type(error).__name__} {error}") from error
        if answer.status_code >= 500 or answer.status_code == 429:
            raise Unavailable(f"{method} {path}: HTTP {answer.status_code} {answer.text[:200]}")
        if answer.status_code >= 400:
            raise Refused(answer.status_code, *_problem(answer.content))
        return answer.content


def _problem(body: bytes) -> tuple[str, str]:
    try:
        problem = msgspec.json.decode(body, type=_Problem)
    except msgspec.MsgspecError:
        return "unknown", body[:200].decode(errors="replace")
    return problem.reason, problem.detail
