"""Events survive torn lines and unknown types, and readers take only what is new."""

from __future__ import annotations

from pathlib import Path

from trainer.events import EventReader, EventWriter, Finished, Stage, StepDone, read_events


def test_reader_follows_writer(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    writer, reader = EventWriter(path), EventReader(path)
    assert reader.read_new() == []
    writer(Stage(name="loading"))
    assert [event.type for event in reader.read_new()] == ["stage"]
    writer(StepDone(step=1, total_steps=2, loss=0.5))
    writer(Finished(result={"lora": "a"}))
    assert [event.type for event in reader.read_new()] == ["step", "finished"]
    assert reader.read_new() == []


def test_torn_last_line_neither_breaks_reading_nor_swallows_the_next_event(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    EventWriter(path)(Stage(name="first"))
    with open(path, "ab") as handle:
        handle.write(b'{"type": "step", "st')
    reader = EventReader(path)
    assert [event.name for event in reader.read_new()] == ["first"]
    EventWriter(path)(Stage(name="after the crash"))
    assert [event.name for event in reader.read_new()] == ["after the crash"]


def test_unknown_types_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text('{"type": "from_the_future", "x": 1}\nnot json\n{"type": "stage", "name": "known", "new_key": 2}\n')
    assert [event.type for event in read_events(path)] == ["stage"]
