"""A session's components and events can be gone through while a stack's rows are being drawn."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest

from app.page import build_page
from app.services.context import Services
from app.steady_dict import SessionEvents, SteadyDict
from trainer.paths import DataFolder


def test_it_can_grow_while_it_is_gone_through() -> None:
    steady = SteadyDict({1: "a", 2: "b"})
    other = copy.copy(steady)
    for walk in (steady.__iter__, steady.keys, steady.values, steady.items):
        before = len(steady)
        assert len([steady.setdefault(len(steady) + 1, "new") for _ in walk()]) == before
    assert list(steady.items())[:2] == [(1, "a"), (2, "b")]
    assert list(steady.values())[:2] == ["a", "b"]
    assert isinstance(other, SteadyDict)
    assert other == {1: "a", 2: "b"}


def test_what_was_drawn_before_can_still_be_clicked() -> None:
    events = SessionEvents({1: "a", 2: "b"})
    del events[2]
    assert events[2] == "b"
    assert (2 in events, events.get(2), list(events.values())) == (False, None, ["a"])
    with pytest.raises(KeyError):
        events[3]
    for number in range(1000, 1600):
        events[number] = "c"
        del events[number]
    with pytest.raises(KeyError):
        events[2]
    assert events[1599] == "c"


def test_every_session_has_one_of_its_own(tmp_path: Path) -> None:
    page = build_page(Services(DataFolder(tmp_path)))
    session = copy.copy(page.default_config)
    assert isinstance(session.fns, SessionEvents)
    assert isinstance(session.blocks, SteadyDict)
    assert session.fns is not page.default_config.fns
