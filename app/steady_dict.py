"""Dicts for what a page's session has: one thread may go through them while another puts something in or takes it out."""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, KeysView, ValuesView
from typing import Any, Self, TypeVar

_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


class SteadyDict(dict[_Key, _Value]):
    """Going through it goes through what was in it at the beginning.

    Gradio 6.31 goes through the components and events of a session in answer to every event, while the thread of a `gr.render`
    puts in those that it makes. A plain dict then ends the event with "dictionary changed size during iteration", which a user
    sees as a click without an answer. A list of a dict's content is made in one go, without giving way to another thread.
    """

    def __iter__(self) -> Iterator[_Key]:
        return iter(list(super().keys()))

    def keys(self) -> KeysView[_Key]:
        """The keys of now."""
        return dict.fromkeys(list(super().keys())).keys()

    def values(self) -> ValuesView[_Value]:
        """The values of now."""
        return dict(enumerate(list(super().values()))).values()

    def items(self) -> ItemsView[_Key, _Value]:
        """The pairs of now."""
        return dict(list(super().items())).items()

    def __copy__(self) -> Self:
        return type(self)(self.items())


class SessionEvents(SteadyDict[int, _Value]):
    """The events of a session by their numbers, which answers also for those that were taken out a moment ago.

    A `gr.render` takes out the events of what it drew before. Who clicks in that moment clicks what is still to be seen, and
    gradio 6.31 has no event of that number any more: the click would be lost. Of rows that are drawn anew the old events do what
    the new ones do, for they know their row by its id.
    """

    _KEPT = 500

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._taken_out: dict[int, _Value] = {}

    def __delitem__(self, key: int) -> None:
        self._taken_out[key] = self[key]
        super().__delitem__(key)
        while len(self._taken_out) > self._KEPT:
            del self._taken_out[next(iter(self._taken_out))]

    def __missing__(self, key: int) -> _Value:
        return self._taken_out[key]
