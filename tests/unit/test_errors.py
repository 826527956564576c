"""Errors on their way from one process to another, and what counts as out of memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from trainer.dataset.pictures import UnusablePicture
from trainer.dataset.problems import error as problem
from trainer.errors import (
    DatasetError,
    Finding,
    InkwashError,
    NonFiniteLossError,
    ResourceError,
    error_from_dict,
    is_out_of_memory,
)


def test_an_error_is_the_same_in_another_process() -> None:
    sent = NonFiniteLossError("NaN.", where="step 3", fix="Lower it.", findings=[Finding("a.b", "too high")])
    received = error_from_dict(sent.to_dict())
    assert type(received) is NonFiniteLossError
    assert (str(received), received.exit_code) == (str(sent), sent.exit_code)


def test_a_subclass_without_a_code_of_its_own_arrives_as_its_parent(tmp_path: Path) -> None:
    sent = UnusablePicture(problem("broken", "This picture is damaged.", "Save it again."), tmp_path / "a.png")
    received = error_from_dict(sent.to_dict())
    assert type(received) is DatasetError
    assert str(received) == str(sent)
    assert "a.png" in str(received)
    assert "Save it again." in str(received)


def test_an_unknown_code_is_still_an_error_with_its_message() -> None:
    received = error_from_dict({"code": "of a newer version", "message": "Something."})
    assert type(received) is InkwashError
    assert str(received) == "Something."


@pytest.mark.parametrize(
    ("error", "wanted"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), True),
        (MemoryError(), True),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
            True,
        ),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"), True),
        (RuntimeError("sizes differ"), False),
        (FileNotFoundError("out of memory.png"), False),
        (ResourceError("The memory is not enough: out of memory."), False),
    ],
)
def test_what_counts_as_out_of_memory(error: BaseException, wanted: bool) -> None:
    assert is_out_of_memory(error) is wanted
