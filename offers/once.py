"""What is worked out when it is first asked for, then known."""

from collections.abc import Callable
from typing import Any, Generic, TypeVar

_Value = TypeVar("_Value")


class once(Generic[_Value]):  # noqa: N801 - it is used as `property` is.
    """`functools.cached_property` without its lock (Python 3.12's has none either): for objects of one thread that are
    made for every moment, where the lock would cost more than the answers."""

    def __init__(self, work_out: Callable[[Any], _Value]) -> None:
        self._work_out = work_out
        self._name = work_out.__name__

    def __get__(self, instance: Any, owner: type) -> _Value:
        value = instance.__dict__[self._name] = self._work_out(instance)
        return value
