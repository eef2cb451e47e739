"""The reasons in words."""

from nearcast.decisions import Reason
from nearcast.reasons import IN_WORDS, in_words


def test_every_reason_has_a_sentence_of_its_own() -> None:
    """None is missing, no two are told alike, and each is a sentence."""
    assert set(IN_WORDS) == set(Reason)
    assert len(set(IN_WORDS.values())) == len(Reason)
    assert all(words[0].isupper() and words.endswith(".") for words in IN_WORDS.values())


def test_a_reason_of_tomorrow_is_told_as_it_is() -> None:
    """A page may be older than the server that it shows."""
    assert in_words("capped") == IN_WORDS[Reason.CAPPED]
    assert in_words("bad_weather") == "bad_weather."
