"""Partitions in columns are those of the keys one by one."""

from hypothesis import given
from hypothesis import strategies as st

from nearcast.ids import partition_of
from server.placing import partitions_of


@given(
    st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=40), min_size=16, max_size=80),
    st.integers(1, 1024),
)
def test_as_one_by_one(keys: list[str], partitions: int) -> None:
    """Of any text and length, for any number of partitions; 16 keys are enough for the columns."""
    assert partitions_of(keys, partitions) == [partition_of(key, partitions) for key in keys]
