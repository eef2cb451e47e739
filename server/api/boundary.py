"""The outermost layer: body limits, security headers, the access log, and the last resort for errors.

A body over its limit is refused, with or without a Content-Length; a little more of it is read and dropped first, since
closing a connection with bytes unread resets it, and the caller would never see the answer. The access log has method,
route template, status and duration; never a path, a query, a key or a body, since those carry tokens and personal data.
An unexpected exception becomes a plain 500; the log gets its type and stack without its message, for the same reason.
"""

import asyncio
import logging
import traceback
import uuid
from collections.abc import Mapping
from contextlib import suppress

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nearcast.clock import Clock
from nearcast.errors import TooLarge
from server.api.problems import instance_of, of_input_error, problem

_LOG = logging.getLogger("nearcast.server.api")
_DISCARD_BYTES = 2 * 1024 * 1024
_DISCARD_S = 1.0
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'; base-uri 'none'",
}


class Boundary:
    """ASGI middleware around the whole API. `limits` are body limits in bytes by exact path; others get `limit`."""

    def __init__(self, app: ASGIApp, clock: Clock, limit: int, limits: Mapping[str, int]) -> None:
        self._app = app
        self._clock = clock
        self._limit = limit
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope["nearcast.instance"] = uuid.uuid4().urn
        answer = _Answer(send)
        began_s = self._clock.monotonic_s()
        limit = self._limits.get(scope["path"], self._limit)
        try:
            if _declared_length(scope) > limit:
                if "expect" not in Headers(scope=scope):
                    await _discard(receive)
                await of_input_error(scope, _too_large(limit))(scope, receive, answer.send)
            else:
                await self._app(scope, _limited(receive, limit), answer.send)
        except Exception as error:  # noqa: BLE001 - the last resort; cancellation passes
            stack = "".join(traceback.format_tb(error.__traceback__))
            _LOG.error("%s failed: %s\n%s", instance_of(scope), type(error).__name__, stack)
            if not answer.status:
                await problem(scope, 500, "internal", "something went wrong here")(scope, receive, answer.send)
        finally:
            template = getattr(scope.get("route"), "path", "-")
            took_ms = (self._clock.monotonic_s() - began_s) * 1000
            _LOG.info("%s %s %d %.1f ms %s", scope["method"], template, answer.status, took_ms, instance_of(scope))


class _Answer:
    """The answer on its way out: gets the headers, and is remembered by its status (0: none yet)."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status = 0

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            for name, value in _HEADERS.items():
                headers.setdefault(name, value)
        await self._send(message)


def _limited(receive: Receive, limit: int) -> Receive:
    read = 0

    async def receive_limited() -> Message:
        nonlocal read
        message = await receive()
        if message["type"] == "http.request":
            read += len(message.get("body", b""))
            if read > limit:
                if message.get("more_body", False):
                    await _discard(receive)
                raise _too_large(limit)
        return message

    return receive_limited


async def _discard(receive: Receive) -> None:
    """Read the rest of a body that nobody wants: as much as comes in a moment, and no more than is harmless."""
    dropped = 0
    with suppress(TimeoutError):
        async with asyncio.timeout(_DISCARD_S):
            while dropped < _DISCARD_BYTES:
                message = await receive()
                dropped += len(message.get("body", b""))
                if not message.get("more_body", False):
                    return


def _declared_length(scope: Scope) -> int:
    declared = Headers(scope=scope).get("content-length", "")
    return int(declared) if declared.isascii() and declared.isdigit() else 0


def _too_large(limit: int) -> TooLarge:
    return TooLarge("body_too_large", f"the body may have {limit} bytes here")
