"""What a run's weights follow from. A checkpoint remembers it, and a run goes on only where all of it is the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from trainer.config.loading import flatten
from trainer.config.run import RunConfig
from trainer.data.examples import Example
from trainer.dataset.preparation import AS_IN_FILE
from trainer.errors import ChangedRunError, Finding
from trainer.models.components import Components
from trainer.models.devices import dtype_name

# These change what is shown and saved, or what is done after a fault, not what is learned.
_FREE = (
    "preview.",
    "save.",
    "note",
    "validation.every",
    "training.device",
    "training.num_threads",
    "training.offload_layers",
    "training.num_devices",
    "training.on_nan",
    "training.deterministic",
    "model.base",
)
LENGTH = "training.steps"
"""A run may be made longer or shorter at any time; that is no fault, but it is told."""


_BY_CONTENT = ("data.dataset", "data.prior.dataset", "adapter.on_top_of")
"""Settings whose files may have moved; their contents are what counts."""


def run_identity(
    config: RunConfig, components: Components, examples: Sequence[Example], num_devices: int = 1
) -> dict[str, Any]:
    """Settings, pictures, base model and surroundings, JSON-able."""
    settings = {path: value for path, value in flatten(config).items() if not path.startswith(_FREE)}
    # Data sets may have moved; their pictures are what counts.
    settings["data.concepts"] = [
        {name: value for name, value in concept.items() if name != "dataset"} for concept in settings["data.concepts"]
    ]
    pictures = {example.name: _facts(example) for example in examples}
    return {
        "settings": {path: value for path, value in settings.items() if path not in _BY_CONTENT}
        | {
            # How many devices share a batch is free, the batch of all of them is not.
            "training.batch_size": config.training.global_batch_size
        },
        "pictures": pictures,
        "base": {part: components.fingerprint(part) for part in components.parts},
        "noise": [components.prediction_type, components.zero_terminal_snr],
        "machine": {
            "torch": torch.__version__,
            "device": components.device.type,
            "precision": dtype_name(components.dtype),
            "threads": torch.get_num_threads(),
            "number of devices": num_devices,
            "deterministic": config.training.deterministic,
        },
    }


def _facts(example: Example) -> list[Any]:
    """What of a picture the weights follow from; more than four entries only where it has a mask, several captions, or something was done to it."""
    facts: list[Any] = [example.sha256, example.caption, example.bucket.width, example.bucket.height]
    done = example.preparation
    if example.mask is None and not example.captions and done == AS_IN_FILE:
        return facts
    facts += [example.mask.sha256 if example.mask else "", list(example.captions)]
    if done != AS_IN_FILE:
        facts.append(list(done.crop.box) if done.crop else [])
    if done.background is not None or done.turn:
        facts.append(done.background.content if done.background else "")
    return [*facts, done.turn] if done.turn else facts


def changes_between(saved: Mapping[str, Any], current: Mapping[str, Any]) -> list[Finding]:
    """What of settings, pictures, captions and base model is not what a checkpoint was made with: where, from what to what."""
    findings = [*_settings(saved["settings"], current["settings"]), *_pictures(saved["pictures"], current["pictures"])]
    findings += [
        Finding(f"base model: {part}", "its weights changed")
        for part in saved["base"]
        if saved["base"][part] != current["base"].get(part)
    ]
    if saved.get("noise", current["noise"]) != current["noise"]:
        findings.append(Finding("base model", f"its noise was {saved['noise']}, is {current['noise']}"))
    before, now = ([item[1:] for item in identity.get("on_top_of", [])] for identity in (saved, current))
    if before != now:
        names = [item[0] for identity in (saved, current) for item in identity.get("on_top_of", [])]
        findings.append(Finding("adapter.on_top_of", f"files or weights changed: {', '.join(dict.fromkeys(names))}"))
    return findings


def require_same(saved: Mapping[str, Any], current: Mapping[str, Any], *, accept: bool = False) -> list[Finding]:
    """Refuse changes since a checkpoint, unless they are accepted or are of the run's length only.

    Returns: the changes that the run goes on with.
    Raises: ChangedRunError, which names each change.
    """
    changes = changes_between(saved, current)
    refused = [change for change in changes if change.where != LENGTH]
    if refused and not accept:
        raise ChangedRunError(
            "This run cannot go on: what it was started with has changed since.",
            findings=refused,
            fix="Put back what was changed, start a new run, or go on with what there is now: `inkwash resume RUN --accept-changes`.",
        )
    return changes


def machine_notes(saved: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """Sentences on what makes the result differ in its last bits: another device, precision or version of torch."""
    return [
        f"The run goes on with another {what} ({before} before, {current['machine'].get(what)} now): "
        "the result will be as good, but not equal to the last bit."
        for what, before in saved["machine"].items()
        if before != current["machine"].get(what)
    ]


def _settings(saved: Mapping[str, Any], current: Mapping[str, Any]) -> list[Finding]:
    # Settings that are younger than the checkpoint had what is their default now.
    saved = {**{path: value for path, value in flatten(RunConfig()).items() if path in current}, **saved}
    return [
        Finding(path, f"was {saved.get(path)!r}, is {current.get(path)!r}")
        for path in sorted(saved.keys() | current.keys())
        if saved.get(path) != current.get(path)
    ]


def _pictures(saved: Mapping[str, list[Any]], current: Mapping[str, list[Any]]) -> list[Finding]:
    findings: list[Finding] = []
    for name in sorted(saved.keys() | current.keys()):
        before, now = saved.get(name), current.get(name)
        if before == now:
            continue
        if now is None:
            findings.append(Finding(name, "the picture is gone"))
        elif before is None:
            findings.append(Finding(name, "the picture is new"))
        elif before[0] != now[0]:
            findings.append(Finding(name, "the picture was changed"))
        elif before[1] != now[1]:
            findings.append(Finding(name, f"its caption was '{before[1]}', is '{now[1]}'"))
        elif before[8:] != now[8:]:
            findings.append(Finding(name, "it was turned"))
        elif before[7:] != now[7:]:
            findings.append(Finding(name, "its background was changed"))
        elif before[6:] != now[6:]:
            findings.append(Finding(name, "its crop was changed"))
        elif before[2:4] != now[2:4]:
            findings.append(Finding(name, "it is cut to another size"))
        elif before[4:5] != now[4:5]:
            findings.append(Finding(name, "its mask was changed"))
        else:
            findings.append(Finding(name, "its captions were changed"))
    return findings
