"""Subject masks by a segmentation model: an ONNX file of the U²-Net, IS-Net or BiRefNet kind from this machine, run by onnxruntime.

Nothing is downloaded here. How a picture is fed follows the `preprocessor_config.json` beside the model, as transformers writes
it; without one, ImageNet's mean and deviation at the model's own size, as U²-Net's makers do (arXiv 2005.09007).
"""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from trainer.base_models.hub import Wanted, cached_snapshot
from trainer.errors import ModelFileError, ResourceError

_PLACES = ("model.onnx", "onnx/model.onnx")
WANTED = Wanted(
    (*_PLACES, "*.json"),
    (),
    lambda names: "" if any(place in names for place in _PLACES) else f"It lacks {' and '.join(_PLACES)}.",
)
"""What is downloaded of such a model."""
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_SIDE = 320
_RANGE = 1e-3
"""An answer that varies by less says nothing of a subject."""
_MAX_VIEW = 1024


@dataclass(frozen=True)
class _Feeding:
    """How a picture is made into the model's input."""

    side: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


class Cutter:
    """A segmentation model that is loaded."""

    def __init__(self, session: Any, feeding: _Feeding, name: str) -> None:
        self._session, self._feeding, self.name = session, feeding, name
        self._input, self._output = session.get_inputs()[0].name, session.get_outputs()[0].name

    def mask(self, image: Image.Image) -> Image.Image | None:
        """Where the subject of an RGB picture is: grey, white for subject, at most 1024 px. None where it sees none.

        Raises: ModelFileError: the model is of another kind.
        """
        try:
            answer = self._session.run([self._output], {self._input: self._fed(image)})[0]
        except _errors() as error:
            raise ModelFileError(f"The model could not look at the picture: {error}", where=self.name) from error
        values = np.asarray(answer, dtype=np.float64).squeeze()
        if values.ndim != 2:
            raise ModelFileError(
                f"The model answers with the shape {np.asarray(answer).shape}, which is no mask.",
                where=self.name,
                fix="Use one of the U²-Net, IS-Net or BiRefNet kind.",
            )
        if values.min() < 0 or values.max() > 1:
            values = 1 / (1 + np.exp(-np.clip(values, -60, 60)))
        if values.max() - values.min() < _RANGE:
            return None
        values = (values - values.min()) / (values.max() - values.min())
        small = Image.fromarray(np.rint(values * 255).astype(np.uint8))
        scale = min(1.0, _MAX_VIEW / max(image.size))
        size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
        return small.resize(size, Image.Resampling.LANCZOS)

    def _fed(self, image: Image.Image) -> NDArray[np.float32]:
        """Shape (1, 3, side, side)."""
        side = self._feeding.side
        small = image.convert("RGB").resize((side, side), Image.Resampling.LANCZOS)
        pixels = np.asarray(small, dtype=np.float32) / 255
        mean, std = (np.array(each, dtype=np.float32) for each in (self._feeding.mean, self._feeding.std))
        pixels = (pixels - mean) / std
        return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None], dtype=np.float32)


def load_cutter(model: str) -> Cutter:
    """Load a model: an `.onnx` file, a folder with `model.onnx`, or the id of one in the Hugging Face cache. Never touches the network.

    Raises: ModelFileError: it is not there, or cannot be used. ResourceError: onnxruntime is not installed.
    """
    path = find_cutter(model)
    if importlib.util.find_spec("onnxruntime") is None:
        raise ResourceError(
            "Masks by a model need the library onnxruntime, which is not installed.",
            fix="Install it with `python launch.py --extra tagger`, or paint the masks.",
        )
    import onnxruntime as runtime  # pyright: ignore[reportMissingImports]

    try:
        session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except _errors() as error:
        raise ModelFileError(
            f"The model cannot be loaded: {error}", where=str(path), fix="Get it again; the file may be incomplete."
        ) from error
    shape = session.get_inputs()[0].shape
    if len(shape) != 4 or (isinstance(shape[1], int) and shape[1] != 3):
        raise ModelFileError(
            f"The model takes the shape {shape}, not pictures (batch, 3, height, width).",
            where=str(path),
            fix="Use one of the U²-Net, IS-Net or BiRefNet kind.",
        )
    return Cutter(session, _feeding(path, shape), model)


def find_cutter(model: str) -> Path:
    """The ONNX file of a model, as `load_cutter` takes it. Raises ModelFileError: it is not there."""
    path = Path(model).expanduser()
    if path.is_file():
        return path
    if not path.is_dir():
        try:
            path = cached_snapshot(model)
        except ModelFileError as error:
            raise ModelFileError(
                f"There is no segmentation model '{model}': no file, no folder, and not in the Hugging Face cache.",
                fix="Give the path of an ONNX file, such as u2net.onnx, or download one: "
                "`inkwash model download OWNER/NAME --for segmentation`.",
            ) from error
    found = next((path / place for place in _PLACES if (path / place).is_file()), None)
    if found is None:
        raise ModelFileError("This folder holds no model.onnx.", where=str(path), fix="Give the file itself.")
    return found


def _feeding(path: Path, shape: list[Any]) -> _Feeding:
    config = _read_config(path)
    own = shape[2] if isinstance(shape[2], int) else 0
    size = config.get("size")
    asked = size.get("height", 0) if isinstance(size, dict) else 0
    mean, std = (_three(config.get(key), usual) for key, usual in (("image_mean", _MEAN), ("image_std", _STD)))
    return _Feeding(own or (asked if isinstance(asked, int) and asked > 0 else _SIDE), mean, std)


def _read_config(path: Path) -> dict[str, Any]:
    for folder in (path.parent, path.parent.parent):
        try:
            config = json.loads((folder / "preprocessor_config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        return config if isinstance(config, dict) else {}
    return {}


def _three(value: Any, usual: tuple[float, ...]) -> tuple[float, ...]:
    is_given = isinstance(value, list) and len(value) == 3 and all(isinstance(one, int | float) for one in value)
    return tuple(value) if is_given else usual


def _errors() -> tuple[type[Exception], ...]:
    """What onnxruntime raises; its errors have no common base."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state  # pyright: ignore[reportMissingImports]

    found = [kind for kind in vars(state).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    return (*found, RuntimeError, ValueError)
