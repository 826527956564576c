"""Starting a job of any kind from plain data: checked as the tabs and the command line check it, before anything is queued."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from app.services.dataset_check import DatasetCheckService
from app.services.tools import ToolService
from app.services.training import TrainingService
from trainer.base_models import resolve_base
from trainer.base_models.download import start_download
from trainer.captioners.job import start_captioning
from trainer.config.bring import BringConfig, RestoreConfig
from trainer.config.caption import CaptionConfig
from trainer.config.compare import CompareConfig
from trainer.config.download import DownloadConfig
from trainer.config.fetch import FetchConfig
from trainer.config.generate import GenerateConfig
from trainer.config.grid import GridConfig
from trainer.config.loading import (
    build_bring_config,
    build_caption_config,
    build_download_config,
    build_fetch_config,
    build_generate_config,
    build_grid_config,
    build_restore_config,
    build_upscale_config,
)
from trainer.config.run import RunConfig
from trainer.config.tools import TOOLS
from trainer.config.upscale import UpscaleConfig
from trainer.dataset.bring_job import start_bringing, start_restoring
from trainer.dataset.cutout_job import MasksRequest, start_masks
from trainer.dataset.doctor.settings import CheckSettings
from trainer.dataset.fetch_job import begin_fetch
from trainer.errors import ConfigError, Finding
from trainer.grid.plan import grid_title, prepare_grid
from trainer.init_pictures import with_kept_pictures
from trainer.jobs import enqueue
from trainer.library import resolve_lora
from trainer.lora_lookup import with_tagged_loras
from trainer.paths import DataFolder
from trainer.runs import create_run
from trainer.upscalers import check_upscaler, start_upscaling

Model = TypeVar("Model", bound=BaseModel)
_TOOL_PREFIX = "tool:"


class CheckRequest(BaseModel):
    """A data set to be checked."""

    model_config = ConfigDict(extra="forbid")

    dataset: Annotated[str, Field(min_length=1)]
    """Its name."""
    settings: CheckSettings = CheckSettings()
    """For which base model."""


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
    config = with_kept_pictures(with_tagged_loras(build_generate_config(settings), data), data)
    resolve_base(config.base, data, has_vae=bool(config.vae))
    check_upscaler(config, data)
    for lora in config.loras:
        if lora.is_on:
            resolve_lora(data, lora.file)
    return _queue(data, "generate", config.prompt[:60] or "pictures", config)


def _grid(data: DataFolder, settings: Mapping[str, Any]) -> str:
    config, _ = prepare_grid(build_grid_config(settings), data)
    resolve_base(config.base, data, has_vae=bool(config.vae))
    return _queue(data, "grid", grid_title(config), config)


def _upscale(data: DataFolder, settings: Mapping[str, Any]) -> str:
    return start_upscaling(data, build_upscale_config(settings)).id


def _train(data: DataFolder, settings: Mapping[str, Any]) -> str:
    return TrainingService(data).start(settings)


def _compare(data: DataFolder, settings: Mapping[str, Any]) -> str:
    config = _valid(CompareConfig, settings)
    resolve_base(config.base, data, has_vae=bool(config.vae))
    resolve_lora(data, config.lora)
    return _queue(data, "compare", f"{config.lora} before/after"[:60], config)


def _download(data: DataFolder, settings: Mapping[str, Any]) -> str:
    config = build_download_config(settings)
    return start_download(data, config.model_id, config.variant, config.purpose).id


def _fetch(data: DataFolder, settings: Mapping[str, Any]) -> str:
    return begin_fetch(data, build_fetch_config(settings)).id


def _import(data: DataFolder, settings: Mapping[str, Any]) -> str:
    return start_bringing(data, build_bring_config(settings)).id


def _restore(data: DataFolder, settings: Mapping[str, Any]) -> str:
    return start_restoring(data, build_restore_config(settings)).id


def _caption(data: DataFolder, settings: Mapping[str, Any]) -> str:
    return start_captioning(data, build_caption_config(settings)).id


def _check(data: DataFolder, settings: Mapping[str, Any]) -> str:
    request = _valid(CheckRequest, settings)
    return DatasetCheckService(data).start(request.dataset, request.settings)


def _masks(data: DataFolder, settings: Mapping[str, Any]) -> str:
    return start_masks(data, _valid(MasksRequest, settings)).id


def _valid(model: type[Model], settings: Mapping[str, Any]) -> Model:
    try:
        return model.model_validate(settings)
    except ValidationError as error:
        findings = [Finding(".".join(map(str, fault["loc"])), fault["msg"]) for fault in error.errors()]
        raise ConfigError("Some settings cannot be used.", findings=findings) from error


def _queue(data: DataFolder, kind: str, title: str, config: BaseModel) -> str:
    run = create_run(data, kind, title, config.model_dump(mode="json"))
    enqueue(run, data)
    return run.id


def _tool(name: str) -> Callable[[DataFolder, Mapping[str, Any]], str]:
    return lambda data, settings: ToolService(data).start(name, settings)


STARTS: dict[str, JobStart] = {
    "generate": JobStart(GenerateConfig, _generate),
    "grid": JobStart(GridConfig, _grid),
    "upscale": JobStart(UpscaleConfig, _upscale),
    "train": JobStart(RunConfig, _train),
    "compare": JobStart(CompareConfig, _compare),
    "caption": JobStart(CaptionConfig, _caption),
    "check": JobStart(CheckRequest, _check),
    "masks": JobStart(MasksRequest, _masks),
    "import": JobStart(BringConfig, _import),
    "restore": JobStart(RestoreConfig, _restore),
    "fetch": JobStart(FetchConfig, _fetch),
    "download": JobStart(DownloadConfig, _download),
    **{f"{_TOOL_PREFIX}{name}": JobStart(settings, _tool(name)) for name, settings in TOOLS.items()},
}
