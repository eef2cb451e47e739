"""The e-mail channel against a real SMTP server."""

import asyncio
from collections.abc import Iterator
from email import message_from_bytes, policy
from email.message import EmailMessage
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from channels.mail import MailChannel, MailSettings, compose
from nearcast.clock import SystemClock
from nearcast.errors import FallBack, RetrySend
from tests.channels.examples import a_message, outgoing
from tests.channels.mail_server import MailServer, knows_nobody

NOW_MS = 1_750_000_000_000


@pytest.fixture
def server() -> Iterator[MailServer]:
    server = MailServer()
    yield server
    server.stop()


def _settings(port: int = 0, **changes: Any) -> MailSettings:
    return MailSettings(
        host="127.0.0.1", port=port, sender="deals@shop.example", sender_name="The Shop", timeout_s=1.0, **changes
    )


def _channel(server: MailServer, **changes: Any) -> MailChannel:
    return MailChannel(_settings(server.port, **changes), SystemClock())


async def test_a_mail_arrives(server: MailServer) -> None:
    """Text and HTML, link, our Message-ID, and the one-click opt-out of RFC 8058, unfolded and unencoded."""
    sent = outgoing(a_message(5))
    message_id = await _channel(server).send(sent)
    (mail,) = server.mailbox.mails
    assert server.mailbox.recipients == ["anna@example.com"]
    assert mail["Message-ID"] == message_id == f"<{5:032x}@shop.example>"
    assert (mail["To"], mail["From"]) == ("Anna <anna@example.com>", "The Shop <deals@shop.example>")
    assert mail["Subject"] == "Tea for less"
    assert mail["List-Unsubscribe"] == f"<{sent.unsubscribe_link}>"
    assert mail["List-Unsubscribe-Post"] == "List-Unsubscribe=One-Click"
    for kind in ("plain", "html"):
        part = mail.get_body((kind,))
        assert isinstance(part, EmailMessage)
        assert sent.link in part.get_content()
        assert "20% off, today only" in part.get_content()


async def test_html_is_escaped(server: MailServer) -> None:
    """Texts from outside are text in the HTML part."""
    await _channel(server).send(outgoing(title="<script>1</script>", name="<b>Anna"))
    html = server.mailbox.mails[0].get_body(("html",))
    assert isinstance(html, EmailMessage)
    assert "<script>" not in html.get_content()
    assert "<b>" not in html.get_content()
    assert "&lt;script&gt;" in html.get_content()


@pytest.mark.parametrize(
    ("answer", "error"),
    [("550 no such user", FallBack), ("450 greylisted", RetrySend), ("552 anna@example.com is full", FallBack)],
)
async def test_a_refused_recipient(server: MailServer, answer: str, error: type[Exception]) -> None:
    """5xx: not by e-mail; 4xx: later. The address is in no error."""
    server.mailbox.rcpt_answers.append(answer)
    with pytest.raises(error) as raised:
        await _channel(server).send(outgoing())
    assert "anna" not in str(raised.value)


@pytest.mark.parametrize(("answer", "error"), [("554 spam", FallBack), ("451 busy", RetrySend)])
async def test_a_refused_mail(server: MailServer, answer: str, error: type[Exception]) -> None:
    """The same for the mail itself."""
    server.mailbox.data_answers.append(answer)
    with pytest.raises(error):
        await _channel(server).send(outgoing())


async def test_a_server_that_is_away_or_silent_is_retried(server: MailServer) -> None:
    """A refused connection, a connection that says nothing, and one that hangs up are passing faults."""
    server.stop()
    with pytest.raises(RetrySend):
        await _channel(server).send(outgoing())
    ended = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await ended.wait()
        writer.close()

    async def hangs_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    for conversation in (silent, hangs_up):
        async with await asyncio.start_server(conversation, "127.0.0.1", 0) as other:
            port = other.sockets[0].getsockname()[1]
            with pytest.raises(RetrySend):
                await MailChannel(_settings(port), SystemClock()).send(outgoing())
            ended.set()


async def test_tls_is_not_given_up_when_insisted_on(server: MailServer) -> None:
    """With `start_tls` a server without STARTTLS gets nothing."""
    with pytest.raises(FallBack):
        await _channel(server, start_tls=True).send(outgoing())
    assert server.mailbox.mails == []


@pytest.mark.filterwarnings("ignore:Requiring AUTH while not requiring TLS:UserWarning")
async def test_a_wrong_login_is_retried_and_not_told(server: MailServer) -> None:
    """A login that fails can be set right in time; the password is in no text."""
    server.stop()
    server.start(auth_require_tls=False, auth_required=True, authenticator=knows_nobody)
    channel = _channel(server, username="shop", password="a-secret", start_tls=False)
    with pytest.raises(RetrySend) as raised:
        await channel.send(outgoing())
    assert "a-secret" not in f"{raised.value!r} {_settings(password='a-secret')!r}"


@pytest.mark.parametrize(
    "address", ["", "anna", "a@b@c", "anna@example.com>", "a,b@example.com", "<x>@example.com", "a\r\nBcc: x@y.example"]
)
async def test_addresses_that_are_none_fall_back(address: str) -> None:
    """What isn't one plain address is never handed to a server."""
    with pytest.raises(FallBack):
        compose(outgoing(email=address), _settings(), NOW_MS)


_NASTY = st.text(st.one_of(st.sampled_from('\r\n\0\x0b\x85\u2028 :<>"\\,;=?@'), st.characters()), max_size=60)


@settings(max_examples=150)
@given(name=_NASTY, title=_NASTY, body=_NASTY)
def test_no_text_can_add_a_header(name: str, title: str, body: str) -> None:
    """Whatever names and texts hold, the mail has the headers we gave it, and one recipient."""
    mail = compose(outgoing(name=name, title=title, body=body), _settings(), NOW_MS)
    read = message_from_bytes(mail.as_bytes(), _class=EmailMessage, policy=policy.default)
    assert sorted(read.keys()) == sorted(
        [
            "Auto-Submitted",
            "Content-Type",
            "Date",
            "From",
            "List-Unsubscribe",
            "List-Unsubscribe-Post",
            "MIME-Version",
            "Message-ID",
            "Subject",
            "To",
        ]
    )
    assert [address.addr_spec for address in mail["To"].addresses] == ["anna@example.com"]
    head = mail.as_bytes().partition(b"\r\n\r\n")[0]
    assert head.count(b"\r") == head.count(b"\n") == head.count(b"\r\n")


async def test_many_at_once(server: MailServer) -> None:
    """One channel sends from many tasks side by side."""
    channel = _channel(server)
    await asyncio.gather(*(channel.send(outgoing(a_message(n))) for n in range(20)))
    assert len({mail["Message-ID"] for mail in server.mailbox.mails}) == 20
