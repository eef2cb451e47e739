"""A mail server that keeps what it gets: the demo's customers read their e-mail here. Runs on the caller's loop."""

import asyncio
import email
import email.policy
from collections.abc import Callable
from typing import NamedTuple

from aiosmtpd.smtp import SMTP, Envelope, Session


class Mail(NamedTuple):
    """One accepted message, for one recipient."""

    to: str
    subject: str
    text: str
    message_id: str


class Mailbox:
    """Listens on a free loopback port while the context is open; `on_mail` is called for every message accepted."""

    def __init__(self, on_mail: Callable[[Mail], None]) -> None:
        self._on_mail = on_mail

    async def __aenter__(self) -> "Mailbox":
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: SMTP(self, hostname="demo.invalid", enable_SMTPUTF8=True), "127.0.0.1", 0
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await self._server.wait_closed()

    @property
    def port(self) -> int:
        return int(self._server.sockets[0].getsockname()[1])

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: ARG002, N802  (aiosmtpd's hook)
        raw = envelope.content if isinstance(envelope.content, bytes) else (envelope.content or "").encode()
        message = email.message_from_bytes(raw, policy=email.policy.default)
        part = message.get_body(("plain", "html"))
        text = str(part.get_content()) if part is not None else ""
        for recipient in envelope.rcpt_tos:
            self._on_mail(Mail(recipient, str(message["Subject"]), text, str(message["Message-ID"])))
        return "250 OK"
