"""A bounded map that forgets what was not used for longest: what an engine keeps decoded of its customers."""

from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Recent(Generic[K, V]):
    """Holds the `bound` entries used last, and at most twice as many.

    Two generations instead of a list in order of use: a look-up costs a dictionary's, and all that was not used for a
    whole generation goes at once. Nothing goes but in `rotate`, so the caller says when that is safe.
    """

    __slots__ = ("_bound", "_old", "newest")

    def __init__(self, bound: int) -> None:
        self._bound = bound
        #: What was used since the last generation, for those who look up very often: what is not here may be in `get`.
        self.newest: dict[K, V] = {}
        self._old: dict[K, V] = {}

    def __len__(self) -> int:
        return len(self.newest.keys() | self._old.keys())

    def get(self, key: K) -> V | None:
        value = self.newest.get(key)
        if value is None:
            value = self._old.get(key)
            if value is not None:
                self.newest[key] = value
        return value

    def put(self, key: K, value: V) -> None:
        self.newest[key] = value

    def rotate(self) -> None:
        """Forget the older generation if the newer one is full. What was used since the last call is kept."""
        if len(self.newest) >= self._bound:
            self._old, self.newest = self.newest, {}
