"""The SMS channel: Twilio's REST API, or one shaped like it.

https://www.twilio.com/docs/messaging/api/message-resource

One HTTP client for all sends. The message id goes along as `Idempotency-Key`, so that a provider that took a message
and then timed out holds one message after the retry. Errors never carry the provider's words: they quote numbers.
"""

import base64
import hashlib
import hmac
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import httpx
import msgspec

from channels.contract import Outgoing, one_line
from nearcast import events
from nearcast.errors import FallBack, RetrySend
from nearcast.events import DeliveryStatus
from nearcast.messages import Message

log = logging.getLogger("nearcast.channels")

#: Two or three segments in practice; carriers join them.
MAX_CHARACTERS = 320

# 3GPP TS 23.038: the basic character set, and the extension table whose characters take two places.
_GSM7 = frozenset(
    "@£$¥èéùìòÇ\nØø\rÅåΔ_ΦΓΛΩΠΨΣΘΞÆæßÉ !\"#¤%&'()*+,-./0123456789:;<=>?¡ABCDEFGHIJKLMNOPQRSTUVWXYZÄÖÑÜ§¿"
    "abcdefghijklmnopqrstuvwxyzäöñüà"
)
_GSM7_EXTENDED = frozenset("\f^{}\\[~]|€")

#: https://www.twilio.com/docs/api/errors: this customer can't be reached by SMS, whatever we do.
_UNSUBSCRIBED = 21610
_BAD_NUMBER = frozenset({21211, 21214, 21217, 21408, 21612, 21614, 21635, 60200})

_CALLBACK_STATUS: Mapping[str, DeliveryStatus] = {
    "sent": "sent",
    "delivered": "delivered",
    "read": "opened",
    "undelivered": "failed",
    "failed": "failed",
    "canceled": "failed",
}


@dataclass(frozen=True, kw_only=True)
class SmsSettings:
    """`callback` gives the URL at which the provider reports what became of a message; None asks for no reports."""

    account_sid: str
    auth_token: str = field(repr=False)
    #: The number (E.164) or sender id that messages come from.
    sender: str
    base_url: str = "https://api.twilio.com"
    callback: Callable[[Message], str] | None = None
    connect_timeout_s: float = 3.0
    read_timeout_s: float = 10.0


class _Answer(msgspec.Struct):
    """What we read of the provider's answers: `sid` of a message taken, `code` of one refused."""

    sid: str = ""
    code: int | None = None


@dataclass(frozen=True)
class Segments:
    """How a text travels: the provider bills per segment."""

    encoding: Literal["GSM-7", "UCS-2"]
    count: int


class SmsChannel:
    """Sends through one account of the provider."""

    def __init__(self, settings: SmsSettings) -> None:
        self._settings = settings
        self._url = f"{settings.base_url.rstrip('/')}/2010-04-01/Accounts/{settings.account_sid}/Messages.json"
        self._client = httpx.AsyncClient(
            auth=(settings.account_sid, settings.auth_token),
            timeout=httpx.Timeout(settings.read_timeout_s, connect=settings.connect_timeout_s),
        )

    @property
    def name(self) -> events.Channel:
        return "sms"

    async def send(self, outgoing: Outgoing) -> str:
        if not outgoing.phone:
            raise FallBack("no phone number")
        form = {"To": outgoing.phone, "From": self._settings.sender, "Body": compose(outgoing)}
        if self._settings.callback is not None:
            form["StatusCallback"] = self._settings.callback(outgoing.message)
        try:
            response = await self._client.post(
                self._url, data=form, headers={"Idempotency-Key": outgoing.message.id, "Accept": "application/json"}
            )
        except httpx.HTTPError as error:
            # After a read time-out the message may have been taken; the key makes the retry safe.
            raise RetrySend(f"the SMS provider can't be reached: {type(error).__name__}") from error
        return _outcome(response)

    async def close(self) -> None:
        await self._client.aclose()


def _outcome(response: httpx.Response) -> str:
    """The provider's id for the message. Raises what its refusal means."""
    try:
        answer = msgspec.json.decode(response.content, type=_Answer)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        answer = _Answer()
    status = response.status_code
    if 200 <= status < 300:
        return answer.sid
    what = f"the SMS provider answered {status}" + (f", code {answer.code}" if answer.code is not None else "")
    if answer.code == _UNSUBSCRIBED:
        raise FallBack(f"unsubscribed: {what}")
    if answer.code in _BAD_NUMBER:
        raise FallBack(f"not a number that takes SMS: {what}")
    if status in (401, 403):
        # Somebody can still set this right before the deadline; meanwhile the breaker spares the provider.
        log.error("%s: check the account and the token of the SMS channel", what)
        raise RetrySend(what)
    if status in (408, 409, 425, 429) or status >= 500:
        raise RetrySend(what)
    log.error("%s: check the settings of the SMS channel", what)
    raise FallBack(what)


def compose(outgoing: Outgoing) -> str:
    """The text of an SMS: title, body and the whole link."""
    title, body = one_line(outgoing.push.title), one_line(outgoing.push.body)
    separator = "" if not body or title.endswith((".", "!", "?", ":")) else "."
    return cut(f"{title}{separator} {body}".strip(), outgoing.link)


def cut(text: str, link: str, limit: int = MAX_CHARACTERS) -> str:
    """`text` and `link` in at most `limit` characters. What is too long loses whole words; the link is never cut."""
    whole = f"{text} {link}".strip()
    if len(whole) <= limit:
        return whole
    # The single character would make the whole message UCS-2, and twice as dear.
    ellipsis = "..." if segments(text).encoding == "GSM-7" else "…"
    room = limit - len(link) - bool(link) - len(ellipsis)
    if room <= 0:
        return link
    kept = text[:room]
    if not text[room].isspace() and " " in kept:
        kept = kept[: kept.rindex(" ")]
    return f"{kept.rstrip()}{ellipsis} {link}".strip()


def segments(text: str) -> Segments:
    """How many segments `text` takes (3GPP TS 23.040): 160 GSM-7 septets or 70 UCS-2 units in one, 153 or 67 in each
    of several; no character is split between two."""
    if all(char in _GSM7 or char in _GSM7_EXTENDED for char in text):
        return Segments("GSM-7", _count([2 if char in _GSM7_EXTENDED else 1 for char in text], 160, 153))
    return Segments("UCS-2", _count([2 if ord(char) > 0xFFFF else 1 for char in text], 70, 67))


def _count(widths: list[int], alone: int, joined: int) -> int:
    if sum(widths) <= alone:
        return 1
    count, used = 1, 0
    for width in widths:
        if used + width > joined:
            count, used = count + 1, 0
        used += width
    return count


def verify_twilio_signature(url: str, params: Mapping[str, str], token: str, signature: str) -> bool:
    """Whether `X-Twilio-Signature` of a callback is right: HMAC-SHA1 over the full URL and the sorted form fields
    (https://www.twilio.com/docs/usage/security#validating-requests). Takes the same time whatever differs."""
    signed = url + "".join(name + params[name] for name in sorted(params))
    mac = hmac.new(token.encode(), signed.encode(), hashlib.sha1).digest()
    return hmac.compare_digest(base64.b64encode(mac), signature.encode("utf-8", "replace"))


def status_of_callback(form: Mapping[str, str]) -> DeliveryStatus | None:
    """What a status callback reports; None for steps that nobody waits for (queued, sending) or unknown ones."""
    return _CALLBACK_STATUS.get(form.get("MessageStatus") or form.get("SmsStatus") or "")
