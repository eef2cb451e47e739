"""The e-mail channel: SMTP, one connection per mail.

A mail has a text and an HTML part, a Message-ID made from the message id (a repeated send is the same mail to any
receiver that looks) and the one-click opt-out of RFC 8058. Nothing that comes from outside can add a header or a
recipient. Errors carry the server's code and never its words: they quote addresses.
"""

import logging
import re
from contextlib import suppress
from dataclasses import dataclass, field
from email.errors import MessageError
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP as SMTP_POLICY
from email.utils import formatdate
from pathlib import Path

import aiosmtplib
from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from channels.contract import Outgoing, one_line
from nearcast import events
from nearcast.clock import Clock
from nearcast.errors import FallBack, RetrySend

log = logging.getLogger("nearcast.channels")

#: Stricter than RFC 5321: no quoted local parts, no comments, no address literals.
_ADDRESS = re.compile(r"[^\s@<>()\[\]\\,;:\"\x00-\x1f\x7f]{1,64}@[^\s@<>()\[\]\\,;:\"\x00-\x1f\x7f]{1,253}\Z")
#: Long links must not be folded or encoded: receivers read them as they stand.
_POLICY = SMTP_POLICY.clone(max_line_length=998)
_TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=select_autoescape(enabled_extensions=("html.j2",)),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


@dataclass(frozen=True, kw_only=True)
class MailSettings:
    """`start_tls`: True insists on it, False never does it, None does it where the server offers it.

    `use_tls` speaks TLS from the first byte (port 465). An empty `username` logs in nowhere.
    """

    host: str
    port: int = 587
    sender: str
    sender_name: str = ""
    start_tls: bool | None = None
    use_tls: bool = False
    username: str = ""
    password: str = field(default="", repr=False)
    #: For each step of the conversation.
    timeout_s: float = 10.0


class MailChannel:
    """Sends through one mail server."""

    def __init__(self, settings: MailSettings, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock

    @property
    def name(self) -> events.Channel:
        return "email"

    async def send(self, outgoing: Outgoing) -> str:
        mail = compose(outgoing, self._settings, self._clock.now_ms())
        settings = self._settings
        smtp = aiosmtplib.SMTP(
            hostname=settings.host,
            port=settings.port,
            timeout=settings.timeout_s,
            use_tls=settings.use_tls,
            start_tls=settings.start_tls,
            username=settings.username or None,
            password=settings.password or None,
        )
        try:
            await smtp.connect()
            await smtp.send_message(mail, sender=settings.sender, recipients=[outgoing.email])
            with suppress(aiosmtplib.SMTPException, OSError):
                # The mail is taken; how the good-bye goes doesn't matter.
                await smtp.quit()
        except (aiosmtplib.SMTPException, OSError) as error:
            raise _fault(error) from error
        finally:
            smtp.close()
        return str(mail["Message-ID"])

    async def close(self) -> None:
        """No connection outlives its mail."""


def compose(outgoing: Outgoing, settings: MailSettings, now_ms: int) -> EmailMessage:
    """The mail. Raises `FallBack` for an address that can't be written to."""
    if not _ADDRESS.match(outgoing.email):
        raise FallBack("no e-mail address, or not a usable one")
    push = outgoing.push
    values = {
        "title": one_line(push.title),
        "body": one_line(push.body),
        "store": one_line(push.store_name),
        "name": one_line(outgoing.name),
        "link": outgoing.link,
        "unsubscribe_link": outgoing.unsubscribe_link,
        "locale": outgoing.locale,
    }
    mail = EmailMessage(policy=_POLICY)
    try:
        mail["From"] = Address(one_line(settings.sender_name), addr_spec=settings.sender)
        mail["To"] = Address(values["name"][:120], addr_spec=outgoing.email)
    except (MessageError, ValueError, IndexError) as error:
        raise FallBack("not a usable e-mail address") from error
    mail["Subject"] = values["title"]
    mail["Date"] = formatdate(now_ms / 1000)
    mail["Message-ID"] = f"<{outgoing.message.id}@{settings.sender.rpartition('@')[2]}>"
    mail["Auto-Submitted"] = "auto-generated"
    if outgoing.unsubscribe_link:
        mail["List-Unsubscribe"] = f"<{outgoing.unsubscribe_link}>"
        mail["List-Unsubscribe-Post"] = "List-Unsubscribe=One-Click"
    mail.set_content(_TEMPLATES.get_template("mail.txt.j2").render(values))
    mail.add_alternative(_TEMPLATES.get_template("mail.html.j2").render(values), subtype="html")
    return mail


def _fault(error: Exception) -> RetrySend | FallBack:
    """What an SMTP fault means for the message."""
    if isinstance(error, aiosmtplib.SMTPAuthenticationError):
        # Somebody can still set this right before the deadline; meanwhile the breaker spares the server.
        log.error("the mail server refuses the login (%d): check the settings of the e-mail channel", error.code)
        return RetrySend(f"the mail server refuses the login: {error.code}")
    if isinstance(error, aiosmtplib.SMTPRecipientsRefused):
        return _by_code(error.recipients[0].code, "the recipient")
    if isinstance(error, aiosmtplib.SMTPConnectError | aiosmtplib.SMTPTimeoutError | OSError):
        return RetrySend(f"the mail server can't be reached: {type(error).__name__}")
    if isinstance(error, aiosmtplib.SMTPResponseException):
        if error.code >= 500:
            log.error("the mail server refuses mail (%s, %d)", type(error).__name__, error.code)
        return _by_code(error.code, "the mail")
    # STARTTLS insisted on but not offered, an address that needs SMTPUTF8, an answer that isn't SMTP.
    log.error("the mail server can't take this mail: %s", type(error).__name__)
    return FallBack(f"the mail server can't take this mail: {type(error).__name__}")


def _by_code(code: int, what: str) -> RetrySend | FallBack:
    return RetrySend(f"{what} was put off: {code}") if code < 500 else FallBack(f"{what} was refused: {code}")
