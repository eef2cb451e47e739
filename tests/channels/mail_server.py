"""A real SMTP server (aiosmtpd) on a free port, in its own thread: can be told to refuse, stopped and started."""

import time
from collections import deque
from email import message_from_bytes, policy
from email.message import EmailMessage
from typing import Any

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, Session

from tests.services.ports import free_ports


class Mailbox:
    """What the server took, in order; `rcpt_answers` and `data_answers` (one per command) make it refuse."""

    def __init__(self) -> None:
        self.mails: list[EmailMessage] = []
        self.recipients: list[str] = []
        self.rcpt_answers: deque[str] = deque()
        self.data_answers: deque[str] = deque()

    async def handle_RCPT(  # noqa: N802 aiosmtpd's name
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        if self.rcpt_answers:
            return self.rcpt_answers.popleft()
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802
        if self.data_answers:
            return self.data_answers.popleft()
        content = envelope.content
        assert isinstance(content, bytes)
        self.mails.append(message_from_bytes(content, _class=EmailMessage, policy=policy.default))
        self.recipients += envelope.rcpt_tos
        return "250 taken"


class _Controller(Controller):  # type: ignore[misc] # aiosmtpd has no types
    """Knows its sessions: aiosmtpd itself leaves their sockets open when it stops."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._sessions: list[SMTP] = []

    def factory(self) -> SMTP:
        session = super().factory()
        self._sessions.append(session)
        return session

    def stop(self, no_assert: bool = False) -> None:
        self.loop.call_soon_threadsafe(self._close_sessions)
        end_s = time.monotonic() + 5
        while any(session.transport is not None for session in self._sessions) and time.monotonic() < end_s:
            time.sleep(0.005)
        super().stop(no_assert)

    def _close_sessions(self) -> None:
        for session in self._sessions:
            if session.transport is not None:
                session.transport.close()


class MailServer:
    """Keeps its port and its mailbox over `stop` and `start`."""

    def __init__(self) -> None:
        self.mailbox = Mailbox()
        (self.port,) = free_ports(1)
        self._controller: _Controller | None = None
        self.start()

    def start(self, **options: Any) -> None:
        self._controller = _Controller(self.mailbox, hostname="127.0.0.1", port=self.port, **options)
        self._controller.start()

    def stop(self) -> None:
        if self._controller is not None:
            self._controller.stop()
            self._controller = None


def knows_nobody(*_: object) -> AuthResult:
    """An authenticator that refuses everyone."""
    return AuthResult(success=False, handled=False)
