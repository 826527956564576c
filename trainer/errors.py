"""Every exception that a user can meet.

InkwashError                 message, where, fix: always shown to the user in full
├── ConfigError              a setting is wrong; carries one finding a field
├── DatasetError             pictures, captions, zips
├── ModelFileError           base models
├── LoraFileError            LoRA files
├── NonFinitePictureError    NaN or Inf instead of a picture
├── ResourceError            memory, disk, device, port
├── RunError                 runs: states, locks, resume
│   ├── NonFiniteLossError   NaN or Inf while training
│   └── ChangedRunError      what a run was started with has changed since
└── Cancelled                the user stopped it; not a failure
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong: where it is (a dotted path, a file), and what."""

    where: str
    message: str

    def __str__(self) -> str:
        return f"{self.where}: {self.message}" if self.where else self.message


class InkwashError(Exception):
    """An error with a message for the user.

    Args:
        message: what is wrong, one or two sentences.
        where: the file, field or picture it is about.
        fix: what the user can do about it.
        findings: the single faults, where there are several (all unreadable pictures, not the first).
    """

    code = "error"
    exit_code = 1

    def __init__(self, message: str, *, where: str = "", fix: str = "", findings: Sequence[Finding] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.where = where
        self.fix = fix
        self.findings = tuple(findings)

    def __str__(self) -> str:
        parts = [self.message]
        if self.where and self.where not in self.message:
            parts.append(f"Where: {self.where}")
        shown = self.findings[:20]
        parts += [f"  - {finding}" for finding in shown]
        if len(self.findings) > len(shown):
            parts.append(f"  - … and {len(self.findings) - len(shown)} more")
        if self.fix:
            parts.append(f"What to do: {self.fix}")
        return "\n".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able form for events, `--json` and the UI."""
        return {
            "code": self.code,
            "message": self.message,
            "where": self.where,
            "fix": self.fix,
            "findings": [{"where": f.where, "message": f.message} for f in self.findings],
        }


class ConfigError(InkwashError):
    """A setting is unknown, of the wrong type, out of range, or does not go with another."""

    code = "config"
    exit_code = 2


class DatasetError(InkwashError):
    """A picture, caption, folder or zip cannot be used."""

    code = "dataset"
    exit_code = 3


class ModelFileError(InkwashError):
    """A base model is missing, incomplete, or of an architecture that cannot be used."""

    code = "model"
    exit_code = 4


class LoraFileError(InkwashError):
    """A LoRA file cannot be read, does not fit the base model, or failed its check after writing."""

    code = "lora"
    exit_code = 5


class NonFinitePictureError(InkwashError):
    """The model gave NaN or infinite numbers instead of a picture."""

    code = "non_finite_picture"
    exit_code = 11


class ResourceError(InkwashError):
    """Memory, disk space, a device or a port is not to be had."""

    code = "resource"
    exit_code = 6


class RunError(InkwashError):
    """A run cannot be started, resumed or found."""

    code = "run"
    exit_code = 7


class NonFiniteLossError(RunError):
    """The loss or a weight became NaN or infinite."""

    code = "non_finite_loss"
    exit_code = 8

    def __init__(
        self, message: str, *, where: str = "", fix: str = "", findings: Sequence[Finding] = (), step: int = 0
    ) -> None:
        super().__init__(message, where=where, fix=fix, findings=findings)
        self.step = step


class ChangedRunError(RunError):
    """Settings, pictures or the base model are not those that the run was started with. It can be told to go on with them."""

    code = "run_changed"
    exit_code = 9


class Cancelled(InkwashError):
    """The user asked to stop. Work done so far is kept."""

    code = "cancelled"
    exit_code = 130


_MEMORY_WORDS = ("out of memory", "out_of_memory", "out_of_device_memory", "can't allocate", "not enough memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device or the computer has no more memory.

    By the class's name, because the processes that ask need not have torch; by the words, because torch raises plain
    RuntimeErrors on the CPU ("DefaultCPUAllocator: can't allocate memory"), on MPS and on XPU.
    """
    if isinstance(error, InkwashError):
        return False
    if isinstance(error, MemoryError) or any(cls.__name__ == "OutOfMemoryError" for cls in type(error).__mro__):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in _MEMORY_WORDS)


def error_from_dict(data: Mapping[str, Any]) -> InkwashError:
    """Rebuild an error from `to_dict`, in another process."""
    # A subclass without a code of its own has its parent's, but perhaps not its parent's arguments.
    classes = {cls.code: cls for cls in _all_classes(InkwashError) if "code" in vars(cls)}
    cls = classes.get(str(data.get("code")), InkwashError)
    findings = [Finding(str(f.get("where", "")), str(f.get("message", ""))) for f in data.get("findings", ())]
    return cls(
        str(data.get("message", "")), where=str(data.get("where", "")), fix=str(data.get("fix", "")), findings=findings
    )


def _all_classes(cls: type[InkwashError]) -> list[type[InkwashError]]:
    return [cls] + [sub for child in cls.__subclasses__() for sub in _all_classes(child)]
