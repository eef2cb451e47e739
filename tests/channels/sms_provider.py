"""An SMS provider on a real socket: Twilio's Messages resource, honouring `Idempotency-Key`, told how to misbehave."""

import base64
import json
import threading
from collections import deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl

ACCOUNT = "AC0123456789"
TOKEN = "a-token"


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    # As many connections as a dispatcher opens at once; those over the usual five would be reset.
    request_queue_size = 256


class SmsProvider:
    """Steps, taken one per request and "accept" when there are none left:

    "accept" · "take_and_hang" (holds the message, never answers) · "hang_up" (closes without an answer) ·
    (status, code) refuses with this HTTP status and provider code.
    """

    def __init__(self) -> None:
        self.steps: deque[Any] = deque()
        #: While set, every request is refused with this (status, code), whatever the steps say.
        self.down: tuple[int, int] | None = None
        #: Idempotency key → the form; what a phone would have got.
        self.held: dict[str, dict[str, str]] = {}
        #: The key of every request, in order.
        self.keys: list[str] = []
        self._closing = threading.Event()
        provider = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                provider._answer(self)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 the base class's name
                pass

        self._server = _Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        form = dict(parse_qsl(request.rfile.read(int(request.headers["Content-Length"])).decode()))
        key = request.headers["Idempotency-Key"]
        self.keys.append(key)
        step = self.down or (self.steps.popleft() if self.steps else "accept")
        expected = base64.b64encode(f"{ACCOUNT}:{TOKEN}".encode()).decode()
        if request.headers["Authorization"] != f"Basic {expected}":
            step = (401, 20003)
        elif request.path != f"/2010-04-01/Accounts/{ACCOUNT}/Messages.json":
            step = (404, 20404)
        if isinstance(step, tuple):
            self._reply(request, step[0], {"code": step[1], "message": "no", "status": step[0]})
            return
        if step != "hang_up":
            self.held.setdefault(key, form)
        if step == "accept":
            self._reply(request, 201, {"sid": f"SM{key}", "status": "queued"})
            return
        if step == "take_and_hang":
            self._closing.wait(30)
        request.close_connection = True

    def _reply(self, request: BaseHTTPRequestHandler, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        request.send_response(status)
        request.send_header("Content-Type", "application/json")
        request.send_header("Content-Length", str(len(data)))
        request.end_headers()
        request.wfile.write(data)
