"""What the Train tab's view of a run draws anew."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from app.tabs.train_run import RunView
from trainer.runs import RunState


def test_a_look_that_began_before_a_run_was_started_does_not_choose_the_old_one_again() -> None:
    """Its answer comes after that of the button, which chose the new run."""
    row = SimpleNamespace(state=RunState.FINISHED)
    history = SimpleNamespace(num_events=3, losses=[(1, 0.5)], validations=[], samples={})
    jobs = SimpleNamespace(
        ids=lambda kind: ["new", "old"],
        row=lambda run_id: row,
        history=lambda run_id: history,
        newest=lambda kind: "new",
    )
    view: Any = RunView.__new__(RunView)
    parts = {"_jobs": jobs, "chosen": "chosen", "picker": "picker", "_seen": "seen"}
    vars(view).update(parts, _choices=lambda: [("New", "new"), ("Old", "old")])
    seen = {
        "list": ["old"],
        "run": ["old", RunState.FINISHED.value, 3, False],
        "chart": ["old", 1, [(1, 0.5)], 0],
        "samples": ["old", 0, None],
    }
    updates = view._poll("old", seen)
    assert set(updates) == {"seen", "picker"}
    assert "value" not in updates["picker"]
    assert updates["picker"]["choices"] == [("New", "new"), ("Old", "old")]
