"""An SMS provider for the demo and tests: Twilio's Messages API, as far as sending and status callbacks go.

`POST /2010-04-01/Accounts/{sid}/Messages.json` with basic auth is answered 201 and a message sid; then the status
callbacks "sent" and "delivered" are posted to the message's `StatusCallback`, signed as Twilio signs them (HMAC-SHA1
over the URL and the sorted form fields). A request repeated under its `Idempotency-Key` is the same message, not a
second one. A thread answers each connection; everything else happens on the event loop.
"""

import asyncio
import base64
import hashlib
import hmac
import json
import secrets
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple
from urllib.parse import parse_qsl

import httpx

MAX_BODY_BYTES = 64 * 1024
_ATTEMPTS = 5


class Sms(NamedTuple):
    """A message as the provider accepted it."""

    sid: str
    to: str
    body: str
    callback: str


def signature(auth_token: str, url: str, fields: Mapping[str, str]) -> str:
    """The `X-Twilio-Signature` of a form post: https://www.twilio.com/docs/usage/security."""
    text = url + "".join(name + fields[name] for name in sorted(fields))
    return base64.b64encode(hmac.new(auth_token.encode(), text.encode(), hashlib.sha1).digest()).decode()


class SmsBox:
    """Listens on a free loopback port while the context is open. `on_sms` is called on the event loop."""

    def __init__(
        self, account: str, auth_token: str, on_sms: Callable[[Sms], None], on_delivered: Callable[[Sms], None]
    ) -> None:
        self._account, self._auth_token = account, auth_token
        self._on_sms, self._on_delivered = on_sms, on_delivered
        self._tasks: set[asyncio.Task[None]] = set()
        self._taken = threading.Lock()
        self._by_key: dict[str, Sms] = {}
        self._http = httpx.AsyncClient(timeout=5.0, trust_env=False)

    async def __aenter__(self) -> "SmsBox":
        self._loop = asyncio.get_running_loop()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(target=self._server.serve_forever, name="sms provider", daemon=True)
        self._thread.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self._server.shutdown)
        self._server.server_close()
        self._thread.join()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._http.aclose()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def path(self) -> str:
        return f"/2010-04-01/Accounts/{self._account}/Messages.json"

    def authorized(self, header: str) -> bool:
        expected = base64.b64encode(f"{self._account}:{self._auth_token}".encode()).decode()
        return hmac.compare_digest(header.encode(), f"Basic {expected}".encode())

    def accept(self, fields: Mapping[str, str], key: str) -> Sms:
        """Called in a connection's thread. `key` is "" for a request that must not be taken for any other."""
        with self._taken:
            if key in self._by_key:
                return self._by_key[key]
            sms = Sms("SM" + secrets.token_hex(16), fields["To"], fields["Body"], fields.get("StatusCallback", ""))
            if key:
                self._by_key[key] = sms
        self._loop.call_soon_threadsafe(self._accepted, sms)
        return sms

    def _accepted(self, sms: Sms) -> None:
        self._on_sms(sms)
        if sms.callback:
            task = asyncio.create_task(self._report(sms), name=f"sms status {sms.sid}")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _report(self, sms: Sms) -> None:
        for status in ("sent", "delivered"):
            fields = {"MessageSid": sms.sid, "MessageStatus": status, "To": sms.to, "AccountSid": self._account}
            headers = {"X-Twilio-Signature": signature(self._auth_token, sms.callback, fields)}
            if not await self._post(sms.callback, fields, headers):
                return
        self._on_delivered(sms)

    async def _post(self, url: str, fields: dict[str, str], headers: dict[str, str]) -> bool:
        for attempt in range(_ATTEMPTS):
            try:
                answer = await self._http.post(url, data=fields, headers=headers)
                if answer.status_code < 500:
                    return answer.status_code < 300
            except httpx.HTTPError:
                pass
            await asyncio.sleep(0.2 * 2**attempt)
        return False


def _handler(box: SmsBox) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 30

        def do_POST(self) -> None:
            length = int(self.headers.get("Content-Length", 0))
            if length > MAX_BODY_BYTES:
                self.close_connection = True
                self._answer(413, {"code": 20001, "message": "too large", "status": 413})
                return
            fields = dict(parse_qsl(self.rfile.read(length).decode(), keep_blank_values=True))
            if self.path != box.path:
                self._answer(404, {"code": 20404, "message": "not found", "status": 404})
            elif not box.authorized(self.headers.get("Authorization", "")):
                self._answer(401, {"code": 20003, "message": "authenticate", "status": 401})
            elif not fields.get("To") or not fields.get("Body"):
                self._answer(400, {"code": 21604, "message": "'To' and 'Body' are required", "status": 400})
            else:
                sms = box.accept(fields, self.headers.get("Idempotency-Key", ""))
                self._answer(201, {"sid": sms.sid, "status": "queued", "to": sms.to, "error_code": None})

        def _answer(self, status: int, body: dict[str, object]) -> None:
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  (the base class's name)
            """Quiet: requests hold phone numbers."""

    return Handler
