"""Signed links."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nearcast.errors import Gone, NotFound
from nearcast.ids import CustomerId
from server.api.links import Link, LinkSigner, Purpose

SIGNER = LinkSigner(b"secret")
_IDS = st.text(min_size=1, max_size=128).filter(lambda s: s.isprintable())
_LINKS = st.builds(
    Link,
    customer=_IDS.map(CustomerId),
    subject=_IDS | st.text("0123456789abcdef", min_size=32, max_size=32),
    expires_ms=st.integers(1, 9_999_999_999).map(lambda s: s * 1000),
    channel=st.sampled_from([None, "sms", "email"]),
)


@given(_LINKS, st.sampled_from(["message", "unsubscribe", "sms_status"]))
def test_round_trip(link: Link, purpose: Purpose) -> None:
    """A token gives back what was signed, until its time, in characters that need no escaping."""
    token = SIGNER.sign(purpose, link)
    assert token.replace("-", "").replace("_", "").isalnum()
    assert SIGNER.verify(purpose, token, link.expires_ms - 1) == link
    with pytest.raises(Gone):
        SIGNER.verify(purpose, token, link.expires_ms)


@given(_LINKS, st.data())
def test_any_change_is_noticed(link: Link, data: st.DataObject) -> None:
    """One other character (that means other bits) makes it unknown; so do another purpose and another secret."""
    token = SIGNER.sign("message", link)
    # The last character may carry bits that mean nothing.
    at = data.draw(st.integers(0, len(token) - 2))
    other = data.draw(st.sampled_from("ABCXYZabcxyz0123456789-_").filter(lambda c: c != token[at]))
    for signer, purpose, forged in (
        (SIGNER, "message", token[:at] + other + token[at + 1 :]),
        (SIGNER, "unsubscribe", token),
        (LinkSigner(b"other"), "message", token),
    ):
        with pytest.raises(NotFound):
            signer.verify(purpose, forged, 0)  # type: ignore[arg-type]


@given(st.text(max_size=60) | st.from_regex(r"[A-Za-z0-9_-]{0,60}", fullmatch=True))
def test_nonsense_is_unknown(token: str) -> None:
    """Whatever stands there, it is an unknown link and no other error."""
    with pytest.raises(NotFound):
        SIGNER.verify("message", token, 0)


def test_short_enough_for_an_sms() -> None:
    """A usual token leaves most of an SMS to the words."""
    token = SIGNER.sign("message", Link(CustomerId("customer-12345"), "9f" * 16, 1_750_000_000_000, "sms"))
    assert len(token) <= 84
