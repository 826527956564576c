"""What is brought in: settings of the jobs that make data sets, of files and folders or of what a run was trained on."""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict, Field

from trainer.config.base import BASIC, Settings

MAX_SOURCES = 100_000


class BringSource(Settings):
    """A file or folder that pictures are taken from."""

    model_config = ConfigDict(str_strip_whitespace=False)  # a name on the disk may begin or end with a blank

    path: Annotated[str, BASIC, Field(min_length=1)]
    """Where it lies: a picture, a caption, a folder or a zip."""
    name: str = ""
    """Of a dropped file: its name below the folder that was dropped."""


class BringConfig(Settings):
    """Pictures to be copied into a data set."""

    dataset: Annotated[str, BASIC, Field(min_length=1, max_length=100)]
    """The name of the new data set, or the data set that they are added to."""
    sources: Annotated[list[BringSource], BASIC, Field(min_length=1, max_length=MAX_SOURCES)]
    """What they are taken from."""
    is_new: bool = True
    """Make a new data set; else they are added to one."""
    trigger_word: Annotated[str, Field(max_length=1000)] = ""
    """The trigger word of a new data set."""


class RestoreConfig(Settings):
    """A data set to be made of what a run was trained on."""

    dataset: Annotated[str, BASIC, Field(min_length=1, max_length=1000)]
    """The data set, or the folder, that the run was trained on."""
    run: Annotated[str, BASIC, Field(min_length=1, max_length=200)]
    """Id of the run."""
    new_name: Annotated[str, BASIC, Field(min_length=1, max_length=100)]
    """The name of the new data set."""
