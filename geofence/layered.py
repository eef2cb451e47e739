"""A dict that shares most of its entries with an older one, since copying a large one takes long."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any, Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")

_GONE: Any = object()
_UNKNOWN: Any = object()


class Layered(Mapping[K, V], Generic[K, V]):
    """Immutable: entries that never change, and a few later ones over them."""

    __slots__ = ("_base", "_over", "_size")

    def __init__(self, base: dict[K, V]) -> None:
        """`base` must not be changed any more."""
        self._base = base
        self._over: dict[K, V] = {}
        self._size = len(base)

    def changed(self, gone: Collection[K], new: dict[K, V]) -> "Layered[K, V]":
        """Without the keys that are gone, then with the new entries."""
        after = Layered(self._base)
        after._over = self._over | dict.fromkeys(gone, _GONE) | new
        after._size = self._size + sum((key in new) - (key in self) for key in {*gone, *new})
        return after

    @property
    def loose(self) -> int:
        """How many entries lie over the others."""
        return len(self._over)

    def __getitem__(self, key: K) -> V:
        value: V = self._over.get(key, _UNKNOWN)
        if value is _UNKNOWN:
            return self._base[key]
        if value is _GONE:
            raise KeyError(key)
        return value

    def __iter__(self) -> Iterator[K]:
        yield from (key for key in self._base if key not in self._over)
        yield from (key for key, value in self._over.items() if value is not _GONE)

    def __len__(self) -> int:
        return self._size
