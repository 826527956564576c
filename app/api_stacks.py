"""The saved stacks in the HTTP API: list, save, delete, share and take in, as the Generate tab and `inkwash stack` do."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Body
from fastapi.responses import FileResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from trainer.config.generate import StackedLora
from trainer.config.loading import build_generate_config
from trainer.errors import InkwashError
from trainer.library import list_loras
from trainer.lora_lookup import find_lora, with_tagged_loras
from trainer.paths import DataFolder
from trainer.stacks import (
    SavedStack,
    delete_stack,
    import_stack_content,
    list_stacks,
    load_stack,
    save_stack,
    stack_file,
)

_HEADERS = {"x-content-type-options": "nosniff", "cache-control": "no-store"}


class StackRequest(BaseModel):
    """A stack to be saved."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, Field(max_length=200)]
    """What it is called from now on."""
    loras: list[dict[str, Any]] = []
    """As the settings of a generation have them."""
    tags: Annotated[str, Field(max_length=10_000)] = ""
    """More LoRAs, as a prompt has them: `<lora:ink-wash:0.8> <lora:robot:0.5:steps=0-0.6>`."""
    overwrite: bool = False
    """Whether a stack of that name is replaced."""


class StackAnswers:
    """The answers; a method a request."""

    def __init__(self, data: DataFolder) -> None:
        self._data = data

    def all(self) -> list[dict[str, Any]]:
        """The saved stacks; `problem` says why one cannot be used, and is empty otherwise."""
        return [self._row(name) for name in list_stacks(self._data)]

    def get(self, name: str) -> dict[str, Any]:
        """A saved stack; `loras` as the settings of a generation take them, `missing` what the library lacks."""
        return _told(load_stack(self._data, self._known(name)))

    def save(self, request: StackRequest) -> dict[str, Any]:
        """Save a stack under a name."""
        settings = build_generate_config({"prompt": request.tags, "loras": request.loras})
        loras = with_tagged_loras(settings, self._data).loras
        # A stack names LoRAs of the library: one that is not there would be missing ever after.
        entries = list_loras(self._data)
        named = [lora.model_copy(update={"file": find_lora(self._data, lora.file, entries).name}) for lora in loras]
        path = save_stack(self._data, request.name, named, overwrite=request.overwrite)
        return _told(load_stack(self._data, path.stem))

    def delete(self, name: str) -> dict[str, Any]:
        """Move a saved stack to the trash folder; `trash` is the folder's name there."""
        return {"trash": delete_stack(self._data, self._known(name)).parent.name}

    def file(self, name: str) -> FileResponse:
        """The file of a saved stack, to be given to others."""
        path = stack_file(self._data, self._known(name))
        return FileResponse(path, media_type="application/json", filename=path.name, headers=_HEADERS)

    def take_in(self, content: Annotated[dict[str, Any], Body()]) -> dict[str, Any]:
        """Take in a stack that was shared; the body is what its file says. It gets a name that is free."""
        return _told(import_stack_content(self._data, content))

    def _row(self, name: str) -> dict[str, Any]:
        try:
            return {**_told(load_stack(self._data, name)), "name": name, "problem": ""}
        except InkwashError as error:
            return {"name": name, "loras": [], "missing": (), "notes": (), "problem": error.message}

    def _known(self, name: str) -> str:
        if name not in list_stacks(self._data):
            raise HTTPException(404, "There is no such stack.")
        return name


def _told(stack: SavedStack) -> dict[str, Any]:
    loras: list[StackedLora] = list(stack.loras)
    return {
        "name": stack.name,
        "loras": [lora.model_dump(mode="json") for lora in loras],
        "missing": stack.missing,
        "notes": stack.notes,
    }
