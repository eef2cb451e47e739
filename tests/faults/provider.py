"""The SMS provider of the channel's tests, which here must bear clients that die in the middle of a request."""

import io
from http.server import BaseHTTPRequestHandler

from tests.channels.sms_provider import SmsProvider


class RobustSmsProvider(SmsProvider):
    """Takes whole requests only."""

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        length = int(request.headers["Content-Length"])
        body = request.rfile.read(length)
        if len(body) < length:
            request.close_connection = True
            return
        connection, request.rfile = request.rfile, io.BytesIO(body)
        super()._answer(request)
        request.rfile = connection
