"""WD14-family taggers: an ONNX model with a list of tags, run by onnxruntime.

What is fed and how the answer is read follows the models' published demo (SmilingWolf/wd-tagger): the picture on a white
square, scaled to the model's size, BGR, 0 to 255; the answer is a probability for each line of `selected_tags.csv`.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from trainer.captioners.captioner import Description, Subject, Tag
from trainer.captioners.models import TAGGER_MODEL, TAGGER_TAGS, find_model, require_runtime
from trainer.config.caption import CaptionConfig, TaggerSettings
from trainer.errors import ModelFileError

_GENERAL, _CHARACTER = 0, 4
"""Values of the column `category`; the others (9: ratings, 1: artists, 3: series) are no part of a caption."""
_KAOMOJI = frozenset(
    [
        "0_0",
        "(o)_(o)",
        "+_+",
        "+_-",
        "._.",
        "<o>_<o>",
        "<|>_<|>",
        "=_=",
        ">_<",
        "3_3",
        "6_9",
        ">_o",
        "@_@",
        "^_^",
        "o_o",
        "u_u",
        "x_x",
        "|_|",
        "||_||",
    ]
)
_PROVIDERS = ("CUDAExecutionProvider", "CPUExecutionProvider")


class Tagger:
    """A tagger that is loaded."""

    def __init__(self, session: Any, labels: list[tuple[str, int]], settings: TaggerSettings) -> None:
        self._session, self._labels, self._settings = session, labels, settings
        entry = session.get_inputs()[0]
        self._input, self._output = entry.name, session.get_outputs()[0].name
        # Shape (batch, height, width, 3); what is free in it is a text.
        self._side = entry.shape[1] if len(entry.shape) == 4 and isinstance(entry.shape[1], int) else 448

    def describe(self, subject: Subject) -> Description:
        """Tags above the thresholds. Raises ModelFileError: the model does not take pictures or fit its list of tags."""
        pixels = as_input(subject.image, self._side)
        try:
            answer = self._session.run([self._output], {self._input: pixels[None]})[0]
        except _errors() as error:
            raise ModelFileError(f"The tagger could not look at {subject.name}: {error}") from error
        scores = np.asarray(answer, dtype=np.float64).reshape(-1)
        if len(scores) != len(self._labels):
            raise ModelFileError(
                f"The model answers with {len(scores)} numbers, but {TAGGER_TAGS} has {len(self._labels)} tags.",
                fix="Both files must come from the same model.",
            )
        return Description(tuple(self._tags(scores.tolist())))

    def _tags(self, scores: list[float]) -> list[Tag]:
        limits = {_GENERAL: self._settings.general_threshold, _CHARACTER: self._settings.character_threshold}
        return [
            Tag(tag_text(name, escape=self._settings.escape_brackets), score, is_name=category == _CHARACTER)
            for (name, category), score in zip(self._labels, scores, strict=True)
            if category in limits and score > limits[category]
        ]


def load(config: CaptionConfig, check_stop: Callable[[], None]) -> Tagger:
    """Load the model. Raises: ModelFileError: it cannot be used. ResourceError: onnxruntime is not installed."""
    folder = find_model("tagger", config.model)
    require_runtime()
    import onnxruntime as runtime  # pyright: ignore[reportMissingImports]

    labels = read_labels(folder / TAGGER_TAGS)
    providers = [name for name in _PROVIDERS if name in runtime.get_available_providers()]
    try:
        session = runtime.InferenceSession(str(folder / TAGGER_MODEL), providers=providers)
    except _errors() as error:
        raise ModelFileError(
            f"The tagger cannot be loaded: {error}",
            where=str(folder / TAGGER_MODEL),
            fix="Download it again; the file may be incomplete.",
        ) from error
    return Tagger(session, labels, config.tagger)


def _errors() -> tuple[type[Exception], ...]:
    """What onnxruntime raises; its errors have no common base."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state  # pyright: ignore[reportMissingImports]

    found = [kind for kind in vars(state).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    return (*found, RuntimeError, ValueError)


def as_input(image: Image.Image, side: int) -> NDArray[np.float32]:
    """A picture as taggers take it: on a white square, bicubic, BGR. Returns: shape (side, side, 3), 0 to 255."""
    longest = max(image.size)
    square = Image.new("RGB", (longest, longest), (255, 255, 255))
    square.paste(image, ((longest - image.width) // 2, (longest - image.height) // 2))
    if longest != side:
        square = square.resize((side, side), Image.Resampling.BICUBIC)
    return np.ascontiguousarray(np.asarray(square, dtype=np.float32)[:, :, ::-1])


def read_labels(path: Path) -> list[tuple[str, int]]:
    """(name, category) of each line of `selected_tags.csv`. Raises ModelFileError: it is not of that form."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            labels = [(row["name"], int(row["category"])) for row in csv.DictReader(file)]
    except (OSError, UnicodeDecodeError, KeyError, TypeError, ValueError, csv.Error) as error:
        raise ModelFileError(
            "The list of tags cannot be read.", where=str(path), fix="It needs the columns `name` and `category`."
        ) from error
    return labels


def tag_text(name: str, *, escape: bool = False) -> str:
    """A tag as it is written: blanks for underscores, but not in faces such as `^_^`."""
    text = name if name in _KAOMOJI else name.replace("_", " ")
    return text.replace("(", r"\(").replace(")", r"\)") if escape else text
