"""Models by their Hugging Face id: from the local cache, and into it when the user asks for that."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.base_models.folders import describe_folder
from trainer.base_models.info import BaseModelInfo
from trainer.errors import InkwashError, ModelFileError, ResourceError
from trainer.files import require_free

log = logging.getLogger(__name__)
# The parts that are needed, and no pickles.
_PATTERNS = ("model_index.json", "*/*.json", "*/*.txt")
_WEIGHTS = "*/*.safetensors"
_NOT_NEEDED = ["safety_checker/*", "feature_extractor/*", "image_encoder/*"]

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all); what it raises ends the download, which a later one takes up where it was."""


@dataclass(frozen=True)
class Wanted:
    """Which files of a model are fetched, by patterns, and what keeps it from being used, by the names of all its files."""

    patterns: tuple[str, ...]
    ignored: tuple[str, ...]
    problem: Callable[[set[str]], str]


def cached_snapshot(model_id: str) -> Path:
    """The folder of a model that was downloaded before. Never touches the network.

    Raises: ModelFileError: it was not; with the command that gets it.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, IncompleteSnapshotError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model_id, local_files_only=True))
    except IncompleteSnapshotError as error:
        # Of what the hub has, only what was wanted is fetched; who opens the folder says what it lacks.
        return Path(error.snapshot_path)
    except (LocalEntryNotFoundError, HFValidationError, OSError) as error:
        raise ModelFileError(
            f"There is no base model '{model_id}': no name in the list, no path, and not in the Hugging Face cache.",
            fix=f"Download it with `inkwash model download {model_id}`, or choose another base model.",
        ) from error


def cached_snapshots() -> Iterator[tuple[str, Path]]:
    """(id, folder) of everything in the Hugging Face cache."""
    from huggingface_hub import constants

    for folder in sorted(Path(constants.HF_HUB_CACHE).glob("models--*--*")):
        try:
            commit = (folder / "refs" / "main").read_text(encoding="utf-8").strip()
        except OSError:
            continue
        snapshot = folder / "snapshots" / commit
        if snapshot.is_dir():
            yield folder.name.removeprefix("models--").replace("--", "/", 1), snapshot


def cached_models() -> list[BaseModelInfo]:
    """The diffusers models in the Hugging Face cache, by id. Nothing but folders' names and settings is read."""
    return [
        describe_folder(snapshot, name=model_id)
        for model_id, snapshot in cached_snapshots()
        if (snapshot / "model_index.json").is_file()
    ]


def download_model(model_id: str, *, variant: str = "", progress: Progress | None = None) -> Path:
    """Download a diffusers model into the Hugging Face cache. Returns its folder.

    Args:
        model_id: owner/name.
        variant: "fp16" fetches only files of that number format, where the model has such.
        progress: see `Progress`.

    Raises:
        ModelFileError: there is no such model, it is not in diffusers' format, or of a family that cannot be used.
        ResourceError: the network, a licence that must be accepted, or the disk; the message says which.
    """
    weights = _WEIGHTS.replace(".safetensors", f".{variant}.safetensors") if variant else _WEIGHTS
    wanted = {"allow_patterns": [*_PATTERNS, weights], "ignore_patterns": _NOT_NEEDED}
    folder = _fetch(model_id, wanted, lambda files: _require_a_model(model_id, files, variant), progress)
    problem = describe_folder(folder).problem
    if problem:
        raise ModelFileError(f"'{model_id}' was downloaded, but cannot be used: {problem}", where=str(folder))
    return folder


def download_files(model_id: str, wanted: Wanted, progress: Progress | None = None) -> Path:
    """Download some files of a model of another kind than base models. Returns its folder in the Hugging Face cache.

    Raises: ModelFileError: there is no such model, or it cannot be used. ResourceError: as `download_model`.
    """

    def check(files: set[str]) -> None:
        problem = wanted.problem(files)
        if problem:
            raise ModelFileError(f"'{model_id}' cannot be used. {problem}", fix="Choose another model.")

    patterns = {"allow_patterns": list(wanted.patterns), "ignore_patterns": list(wanted.ignored)}
    return _fetch(model_id, patterns, check, progress)


def _fetch(model_id: str, wanted: dict[str, Any], check: Callable[[set[str]], None], progress: Progress | None) -> Path:
    """Look what there is, let `check` refuse it, and fetch what is missing."""
    from huggingface_hub import constants, snapshot_download

    with _online(), _hub_errors(model_id):
        files = snapshot_download(model_id, dry_run=True, **wanted)
        check({file.filename for file in files})
        total = sum(file.file_size or 0 for file in files)
        missing = sum(file.file_size or 0 for file in files if file.will_download)
        require_free(Path(constants.HF_HUB_CACHE), missing, f"the model '{model_id}'")
        bars = _bar_class(progress, total - missing, total) if progress else None
        return Path(snapshot_download(model_id, tqdm_class=bars, **wanted))


@contextmanager
def _online() -> Iterator[None]:
    """Lift the ban on the network, which all of Inkwash's processes begin with: the user asked for this."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = False
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


@contextmanager
def _hub_errors(model_id: str) -> Iterator[None]:
    from huggingface_hub.errors import DryRunError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        yield
    except HFValidationError as error:
        raise ModelFileError(f"'{model_id}' is not the id of a model.", fix="Give it as owner/name.") from error
    except (DryRunError, LocalEntryNotFoundError) as error:
        # Both stand for what went wrong before them.
        raise _refusal(model_id, error.__cause__ or error) from error
    except HfHubHTTPError as error:
        raise _refusal(model_id, error) from error


def _refusal(model_id: str, error: BaseException) -> InkwashError:
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    if isinstance(error, GatedRepoError):
        return ResourceError(
            f"'{model_id}' is given only to those who accepted its licence.",
            fix="Accept it on the model's page, sign in on this machine with `hf auth login`, and try again.",
        )
    if isinstance(error, RepositoryNotFoundError):
        return ModelFileError(
            f"There is no model '{model_id}' that may be downloaded.",
            fix="Check the spelling (owner/name). A private model wants `hf auth login` first.",
        )
    if isinstance(error, HfHubHTTPError):
        return ResourceError(f"The model's server refused: {error}", fix="Try again later; what has arrived is kept.")
    return ResourceError(
        "The model's server cannot be reached.", fix="Check the network and try again; what has arrived is kept."
    )


def _require_a_model(model_id: str, files: set[str], variant: str) -> None:
    if "model_index.json" not in files:
        raise ModelFileError(
            f"'{model_id}' is no whole model in diffusers' format.",
            fix="Choose another, or download its single .safetensors file yourself and put it among the models.",
        )
    if not any(file.endswith(".safetensors") for file in files):
        what = f" of the variant '{variant}'" if variant else ""
        raise ModelFileError(
            f"'{model_id}' has no .safetensors weights{what}.",
            fix="Leave the variant out." if variant else "Choose a model that is saved safely.",
        )


def _bar_class(progress: Progress, begin: int, total: int) -> type[Any]:
    """A class of progress bars that says nothing itself and passes on the bytes; the hub makes several at once."""
    from tqdm import tqdm

    furthest = begin

    class Bar(tqdm):
        def __init__(self, *args: Any, **options: Any) -> None:
            self._counts_bytes = options.get("unit") == "B"
            self._done = 0
            super().__init__(*args, **{**options, "disable": True})

        def update(self, n: float | None = 1) -> bool | None:
            nonlocal furthest
            if self._counts_bytes and n:
                self._done += int(n)
                # One bar counts what comes in, another what is written.
                furthest = max(furthest, min(begin + self._done, total))
                progress(furthest, total)
            return None

    return Bar
