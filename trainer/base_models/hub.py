"""Models by their Hugging Face id: from the local cache, and into it when the user asks for that."""

from __future__ import annotations

from pathlib import Path

from trainer.errors import ModelFileError, ResourceError

# The parts that are needed, and no pickles.
_PATTERNS = ["model_index.json", "*/*.json", "*/*.txt", "*/*.safetensors"]
_NOT_NEEDED = ["safety_checker/*", "feature_extractor/*", "image_encoder/*"]


def cached_snapshot(model_id: str) -> Path:
    """The folder of a model that was downloaded before. Never touches the network.

    Raises: ModelFileError: it was not; with the command that gets it.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model_id, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError, OSError) as error:
        raise ModelFileError(
            f"There is no base model '{model_id}': no name in the list, no path, and not in the Hugging Face cache.",
            fix=f"Download it with `inkwash model download {model_id}`, or choose another base model.",
        ) from error


def download_model(model_id: str, *, variant: str = "") -> Path:
    """Download a diffusers model into the Hugging Face cache, with its own progress bars. Returns its folder.

    Args:
        model_id: owner/name.
        variant: "fp16" fetches only files of that number format, where the model has such.

    Raises: ResourceError: the network, the id or the disk; the message says which.
    """
    from huggingface_hub import snapshot_download

    patterns = [*_PATTERNS[:-1], f"*/*.{variant}.safetensors" if variant else _PATTERNS[-1]]
    try:
        return Path(snapshot_download(model_id, allow_patterns=patterns, ignore_patterns=_NOT_NEEDED))
    except (OSError, ValueError) as error:
        raise ResourceError(
            f"The model '{model_id}' could not be downloaded: {error}",
            fix="Check its id, the network, and whether it wants you to accept a licence first.",
        ) from error
