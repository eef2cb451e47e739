"""Signed links: what an SMS or e-mail carries so that its reader needs no login.

A token is `base64url(payload + MAC)`. It names a customer and a subject, works for one purpose only and until its time
is over. Whoever has the link has its rights, as with any such link: tokens must not be logged, and pages reached by
them must not pass them on (no referrer). The payload is signed, not encrypted.
"""

import base64
import binascii
import hashlib
import hmac
from typing import Literal

import msgspec

from nearcast.errors import Gone, NotFound
from nearcast.events import Channel
from nearcast.ids import CustomerId

#: message: the message's page, subject = decision id · unsubscribe: subject = consent scope ·
#: sms_status: the SMS provider's callback, subject = decision id.
Purpose = Literal["message", "unsubscribe", "sms_status"]

_MAC_BYTES = 16
_MAX_TOKEN_CHARS = 1_024
_HEX_ID = 32


class Link(msgspec.Struct, frozen=True, array_like=True):
    """What a token stands for. `channel` is the one that carried the link."""

    customer: CustomerId
    subject: str
    expires_ms: int
    channel: Channel | None = None


class _Payload(msgspec.Struct, frozen=True, array_like=True):
    """A `Link`, as short as it gets: an SMS has 160 characters."""

    expires_s: int
    customer: str
    #: The subject, as bytes if it is a derived id (32 hexadecimal digits), else as text; the other one is empty.
    derived: bytes
    text: str
    channel: Channel | None = None


class LinkSigner:
    """Makes and reads tokens under one secret."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def sign(self, purpose: Purpose, link: Link) -> str:
        """The token of a link; `expires_ms` is rounded up to the second."""
        derived, text = (bytes.fromhex(link.subject), "") if _is_derived(link.subject) else (b"", link.subject)
        payload = msgspec.msgpack.encode(
            _Payload(-(-link.expires_ms // 1000), link.customer, derived, text, link.channel)
        )
        return base64.urlsafe_b64encode(payload + self._mac(purpose, payload)).rstrip(b"=").decode()

    def verify(self, purpose: Purpose, token: str, now_ms: int) -> Link:
        """The link of a token. Raises `NotFound` if it was not made for this purpose here, `Gone` if it is over."""
        payload = self._signed(purpose, token)
        if payload is None:
            raise NotFound("unknown_link", "it may have been cut off; open the whole link from your message again")
        decoded = msgspec.msgpack.decode(payload, type=_Payload)
        if now_ms >= decoded.expires_s * 1000:
            raise Gone("link_expired", "this link's time is over")
        subject = decoded.derived.hex() or decoded.text
        return Link(CustomerId(decoded.customer), subject, decoded.expires_s * 1000, decoded.channel)

    def _signed(self, purpose: Purpose, token: str) -> bytes | None:
        if not token.isascii() or len(token) > _MAX_TOKEN_CHARS:
            return None
        try:
            data = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
        except binascii.Error:
            return None
        payload, mac = data[:-_MAC_BYTES], data[-_MAC_BYTES:]
        return payload if hmac.compare_digest(mac, self._mac(purpose, payload)) else None

    def _mac(self, purpose: Purpose, payload: bytes) -> bytes:
        message = b"link\x00" + purpose.encode() + b"\x00" + payload
        return hmac.new(self._secret, message, hashlib.sha256).digest()[:_MAC_BYTES]


def _is_derived(subject: str) -> bool:
    return len(subject) == _HEX_ID and all(c in "0123456789abcdef" for c in subject)
