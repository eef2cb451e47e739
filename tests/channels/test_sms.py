"""The SMS channel against a provider on a real socket, and the texts it sends."""

from collections.abc import AsyncIterator, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from channels.sms import (
    MAX_CHARACTERS,
    SmsChannel,
    SmsSettings,
    compose,
    cut,
    segments,
    status_of_callback,
    verify_twilio_signature,
)
from nearcast.errors import FallBack, RetrySend
from tests.channels.examples import a_message, outgoing
from tests.channels.sms_provider import ACCOUNT, TOKEN, SmsProvider


@pytest.fixture
def provider() -> Iterator[SmsProvider]:
    provider = SmsProvider()
    yield provider
    provider.close()


@pytest.fixture
async def channel(provider: SmsProvider) -> AsyncIterator[SmsChannel]:
    channel = SmsChannel(_settings(provider.url))
    yield channel
    await channel.close()


def _settings(url: str, token: str = TOKEN) -> SmsSettings:
    return SmsSettings(
        account_sid=ACCOUNT,
        auth_token=token,
        sender="+15550199",
        base_url=url,
        callback=lambda message: f"https://shop.example/sms/{message.decision}",
        read_timeout_s=0.3,
    )


async def test_a_send_is_a_twilio_message(provider: SmsProvider, channel: SmsChannel) -> None:
    """One POST with To, From, Body and StatusCallback under the message's own key; the sid comes back."""
    message = a_message(7)
    assert await channel.send(outgoing(message)) == f"SM{message.id}"
    assert provider.held == {
        message.id: {
            "To": "+15550100",
            "From": "+15550199",
            "Body": f"Tea for less. 20% off, today only https://shop.example/m/{message.id}",
            "StatusCallback": "https://shop.example/sms/d7",
        }
    }


async def test_taken_and_then_timed_out_is_one_message(provider: SmsProvider, channel: SmsChannel) -> None:
    """A provider that takes a message and never answers holds one message after the retry (I10)."""
    provider.steps.append("take_and_hang")
    with pytest.raises(RetrySend):
        await channel.send(outgoing())
    await channel.send(outgoing())
    assert len(provider.keys) == 2
    assert len(provider.held) == 1


@pytest.mark.parametrize(
    ("step", "error"),
    [
        ((429, 20429), RetrySend),
        ((500, None), RetrySend),
        ((503, 30001), RetrySend),
        ((401, 20003), RetrySend),
        ("hang_up", RetrySend),
        ((400, 21610), FallBack),
        ((400, 21211), FallBack),
        ((400, 21614), FallBack),
        ((400, 21606), FallBack),
    ],
)
async def test_refusals_say_what_happens_next(
    provider: SmsProvider, channel: SmsChannel, step: object, error: type[Exception]
) -> None:
    """Passing faults are retried; a number that can't be reached falls back; the number is in no error."""
    provider.steps.append(step)
    with pytest.raises(error) as raised:
        await channel.send(outgoing())
    assert "555" not in str(raised.value)


async def test_nobody_listening_is_retried(channel: SmsChannel, provider: SmsProvider) -> None:
    """A refused connection is a passing fault, and no number at all is none."""
    with pytest.raises(FallBack):
        await channel.send(outgoing(phone=""))
    provider.close()
    closed = SmsChannel(_settings(provider.url))
    with pytest.raises(RetrySend):
        await closed.send(outgoing())
    await closed.close()


async def test_the_token_is_in_no_text(provider: SmsProvider) -> None:
    """Neither the settings' text nor the error for a wrong token shows the token."""
    settings = _settings(provider.url, token="wrong-secret")
    channel = SmsChannel(settings)
    with pytest.raises(RetrySend) as raised:
        await channel.send(outgoing())
    await channel.close()
    assert "wrong-secret" not in f"{raised.value!r} {settings!r}"


@given(text=st.text(max_size=600), link=st.text("abc/:.", max_size=200), limit=st.integers(1, 400))
def test_cutting_never_touches_the_link(text: str, link: str, limit: int) -> None:
    """The link ends the text whole, and the text fits unless the link alone is too long."""
    result = cut(text, link, limit)
    assert result.endswith(link)
    assert len(result) <= max(limit, len(link))


@given(words=st.lists(st.sampled_from(["tea", "coffee", "half", "price", "Käse", "茶"]), min_size=1, max_size=200))
def test_cutting_keeps_whole_words(words: list[str]) -> None:
    """What is left are the first words, and an ellipsis only where something is missing."""
    result = cut(" ".join(words), "https://x.example/1").removesuffix(" https://x.example/1")
    kept = result.removesuffix("...").removesuffix("…").split()
    assert kept == words[: len(kept)]
    assert result.endswith(("...", "…")) == (len(kept) < len(words))


def test_a_long_message_fits() -> None:
    """Title and body at their longest still leave the link whole."""
    text = compose(outgoing(title="Tea! " * 24, body="word " * 96))
    assert len(text) <= MAX_CHARACTERS
    assert text.endswith(f"https://shop.example/m/{a_message().id}")


@pytest.mark.parametrize(
    ("text", "encoding", "count"),
    [
        ("a" * 160, "GSM-7", 1),
        ("a" * 161, "GSM-7", 2),
        ("a" * 306, "GSM-7", 2),
        ("a" * 307, "GSM-7", 3),
        ("€" * 80, "GSM-7", 1),
        ("€" * 81, "GSM-7", 2),
        # 153 places hold 76 two-place characters: the 77th is not split.
        ("€" * 153, "GSM-7", 3),
        ("ж" * 70, "UCS-2", 1),
        ("ж" * 71, "UCS-2", 2),
        ("😀" * 35, "UCS-2", 1),
        # 67 places hold 33 surrogate pairs.
        ("😀" * 67, "UCS-2", 3),
        ("", "GSM-7", 1),
    ],
)
def test_segments_are_counted_as_they_are_billed(text: str, encoding: str, count: int) -> None:
    """GSM-7 and UCS-2, one segment and several, at their edges (figures from 3GPP TS 23.040)."""
    found = segments(text)
    assert (found.encoding, found.count) == (encoding, count)


def test_signatures_are_twilios() -> None:
    """The worked example of Twilio's own documentation verifies; any change of it does not."""
    url = "https://mycompany.com/myapp.php?foo=1&bar=2"
    params = {
        "CallSid": "CA1234567890ABCDE",
        "Caller": "+14158675310",
        "Digits": "1234",
        "From": "+14158675310",
        "To": "+18005551212",
    }
    signature = "GvWf1cFY/Q7PnoempGyD5oXAezc="
    assert verify_twilio_signature(url, params, "12345", signature)
    assert not verify_twilio_signature(url, params, "12346", signature)
    assert not verify_twilio_signature(url + "0", params, "12345", signature)
    assert not verify_twilio_signature(url, {**params, "Digits": "1235"}, "12345", signature)
    assert not verify_twilio_signature(url, params, "12345", "ünsigned\ud800")


@pytest.mark.parametrize(
    ("form", "status"),
    [
        ({"MessageStatus": "delivered"}, "delivered"),
        ({"SmsStatus": "sent"}, "sent"),
        ({"MessageStatus": "read"}, "opened"),
        ({"MessageStatus": "undelivered"}, "failed"),
        ({"MessageStatus": "queued"}, None),
        ({"MessageStatus": "something new"}, None),
        ({}, None),
    ],
)
def test_callbacks_become_statuses(form: dict[str, str], status: str | None) -> None:
    """Steps that nobody waits for, and unknown ones, are nothing."""
    assert status_of_callback(form) == status
