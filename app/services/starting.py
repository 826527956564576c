"""Starting a job of any kind from plain data: checked as the tabs and the command line check it, before anything is queued."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError

from app.services.tools import ToolService
from app.services.training import TrainingService
from trainer.base_models import resolve_base
from trainer.base_models.download import start_download
from trainer.config.compare import CompareConfig
from trainer.config.download import DownloadConfig
from trainer.config.generate import GenerateConfig
from trainer.config.loading import build_generate_config
from trainer.config.run import RunConfig
from trainer.config.tools import TOOLS
from trainer.errors import ConfigError, Finding
from trainer.jobs import enqueue
from trainer.library import resolve_lora
from trainer.lora_lookup import with_tagged_loras
from trainer.paths import DataFolder
from trainer.runs import create_run

_TOOL_PREFIX = "tool:"


@dataclass(frozen=True)
class JobStart:
    """How a kind of job is started: `begin(data, settings)` returns the run's id; `settings` is the schema."""

    settings: type[BaseModel]
    begin: Callable[[DataFolder, Mapping[str, Any]], str]


def start_job(data: DataFolder, kind: str, settings: Mapping[str, Any]) -> str:
    """Check the settings, make a run of them and put it in the queue. Returns its id.

    Args:
        kind: a key of STARTS: "generate", "train", "compare", "download", "tool:merge", …
        settings: as the schema of the kind has them; what is left out is the default.

    Raises: ConfigError: there is no such kind, or the settings cannot be run; one finding a fault. LoraFileError,
        ModelFileError: a file that they name is not there.
    """
    if kind not in STARTS:
        raise ConfigError(
            f"There is no kind of job '{kind[:40]}'.", where="kind", fix=f"Choose one of: {', '.join(STARTS)}."
        )
    return STARTS[kind].begin(data, settings)


def _generate(data: DataFolder, settings: Mapping[str, Any]) -> str:
    config = with_tagged_loras(build_generate_config(settings), data)
    resolve_base(config.base, data)
    for lora in config.loras:
        resolve_lora(data, lora.file)
    return _queue(data, "generate", config.prompt[:60] or "pictures", config)


def _train(data: DataFolder, settings: Mapping[str, Any]) -> str:
    return TrainingService(data).start(settings)


def _compare(data: DataFolder, settings: Mapping[str, Any]) -> str:
    try:
        config = CompareConfig.model_validate(settings)
    except ValidationError as error:
        findings = [Finding(".".join(map(str, fault["loc"])), fault["msg"]) for fault in error.errors()]
        raise ConfigError("Some settings cannot be used.", findings=findings) from error
    resolve_base(config.base, data)
    resolve_lora(data, config.lora)
    return _queue(data, "compare", f"{config.lora} before/after"[:60], config)


def _download(data: DataFolder, settings: Mapping[str, Any]) -> str:
    return start_download(data, str(settings.get("model_id", "")), str(settings.get("variant", ""))).id


def _queue(data: DataFolder, kind: str, title: str, config: BaseModel) -> str:
    run = create_run(data, kind, title, config.model_dump(mode="json"))
    enqueue(run, data)
    return run.id


def _tool(name: str) -> Callable[[DataFolder, Mapping[str, Any]], str]:
    return lambda data, settings: ToolService(data).start(name, settings)


STARTS: dict[str, JobStart] = {
    "generate": JobStart(GenerateConfig, _generate),
    "train": JobStart(RunConfig, _train),
    "compare": JobStart(CompareConfig, _compare),
    "download": JobStart(DownloadConfig, _download),
    **{f"{_TOOL_PREFIX}{name}": JobStart(settings, _tool(name)) for name, settings in TOOLS.items()},
}
