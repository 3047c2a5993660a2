"""Many values in little memory and as few objects: what processes that read are handed stays shared between them, where
counting references to an object for every file would copy it to each."""

from __future__ import annotations

import pickle
from array import array
from collections.abc import Iterable, Iterator, MutableMapping, Sequence
from typing import Generic, TypeVar, overload

V = TypeVar("V")

NONE = -1


class Packed(Sequence[V]):
    """Values of plain types as one block of bytes; each is made anew when it is asked for."""

    def __init__(self, values: Iterable[V] = ()) -> None:
        self.block, self.ends = bytearray(), array("q")
        self.extend(values)

    def extend(self, values: Iterable[V]) -> None:
        parts, end = [pickle.dumps(value, protocol=5) for value in values], len(self.block)
        self.ends.extend(end := end + len(part) for part in parts)
        self.block += b"".join(parts)

    def append(self, value: V) -> None:
        self.extend((value,))

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, index: int) -> V: ...
    @overload
    def __getitem__(self, index: slice) -> list[V]: ...
    def __getitem__(self, index: int | slice) -> V | list[V]:
        if isinstance(index, slice):
            return [self[n] for n in range(len(self))[index]]
        start = 0 if index in (0, -len(self.ends)) else self.ends[index - 1]
        # nothing but what this class wrote in this run, which never lies in a file
        value: V = pickle.loads(self.block[start : self.ends[index]])
        return value


class Alike(MutableMapping[int, V], Generic[V]):
    """Values by index, from 0 to `size` or fewer of them, most of which are one of a few."""

    def __init__(self, size: int) -> None:
        self.codes = array("q", [NONE]) * size  # which of `kept` each is
        self.kept: list[V] = []
        self._known: dict[V, int] = {}
        self._last = 0  # code of the value that was set last
        self._count = 0

    def __setitem__(self, index: int, value: V) -> None:
        if not self.kept or value is not self.kept[self._last]:  # neighbours mostly have the same
            self._last = self._code(value)
        self._count += self.codes[index] == NONE
        self.codes[index] = self._last

    def _code(self, value: V) -> int:
        try:
            code = self._known.setdefault(value, len(self.kept))
        except TypeError:  # not hashable
            code = len(self.kept)
        if code == len(self.kept):
            self.kept.append(value)
        return code

    def __getitem__(self, index: int) -> V:
        if not 0 <= index < len(self.codes) or (code := self.codes[index]) == NONE:
            raise KeyError(index)
        return self.kept[code]

    def __delitem__(self, index: int) -> None:
        self[index]  # raises KeyError
        self.codes[index] = NONE
        self._count -= 1

    def __iter__(self) -> Iterator[int]:
        return (index for index, code in enumerate(self.codes) if code != NONE)

    def __len__(self) -> int:
        return self._count
