from __future__ import annotations

import io
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests import zoo
from trainer.dataset import pictures as module
from trainer.dataset.pictures import UnusablePicture, open_picture, read_picture
from trainer.dataset.problems import Problem
from trainer.errors import DatasetError


def codes(path: Path) -> list[str]:
    return [problem.code for problem in read_picture(path).problems]


@pytest.mark.parametrize(
    ("make", "name", "code", "words"),
    [
        (zoo.empty_file, "a.jpg", "empty_file", "empty"),
        (zoo.text_as_picture, "a.png", "not_a_picture", "text file"),
        (zoo.web_page_as_picture, "a.jpg", "not_a_picture", "web page"),
        (zoo.truncated, "a.jpg", "broken", "incomplete"),
        (zoo.truncated, "a.png", "broken", "incomplete"),
        (zoo.bad_checksum, "a.png", "broken", "damaged"),
        (zoo.huge, "a.png", "too_large", "20000×20000"),
        (lambda path: zoo.good(path, size=(1, 1)), "a.png", "too_small", "1×1"),
        (lambda path: zoo.good(path, size=(4000, 8)), "a.png", "too_small", "4000×8"),
        (zoo.text_as_picture, "a.svg", "unsupported", ".svg"),
    ],
)
def test_a_bad_picture_says_what_is_wrong_and_what_to_do(
    tmp_path: Path, make: Callable[[Path], Path], name: str, code: str, words: str
) -> None:
    path = make(tmp_path / name)
    with pytest.raises(UnusablePicture) as caught:
        open_picture(path)
    assert caught.value.problem.code == code
    assert words in caught.value.message
    assert caught.value.fix
    assert str(path) in str(caught.value)


def test_the_warn_zone_of_pillow_is_refused_without_a_python_warning(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    path = zoo.huge(tmp_path / "a.png", side=12_000)
    with pytest.raises(UnusablePicture, match="12000×12000"):
        open_picture(path)
    assert not list(recwarn)


def test_a_missing_or_special_file_is_a_dataset_error(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="gone"):
        open_picture(tmp_path / "nothing.png")
    with pytest.raises(DatasetError, match="not a file"):
        open_picture(tmp_path)


def test_sixteen_bit_grey_keeps_its_ramp(tmp_path: Path) -> None:
    values = np.asarray(open_picture(zoo.deep_grey(tmp_path / "a.png")))
    assert values.shape == (64, 256, 3)
    # The ramp of 256 steps is 0, 1, ..., 255; Pillow's own conversion would be white from the second column on.
    assert np.abs(values[0, :, 0].astype(int) - np.arange(256)).max() <= 1


@pytest.mark.parametrize("top", [1.0, 255.0, 4000.0])
def test_float_grey_keeps_its_ramp(tmp_path: Path, top: float) -> None:
    values = np.asarray(open_picture(zoo.float_grey(tmp_path / "a.tif", top)))
    assert np.abs(values[0, :, 0].astype(int) - np.arange(256)).max() <= 1


def test_float_pixels_that_are_nan_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.full((64, 64), np.nan, np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(UnusablePicture) as caught:
        open_picture(tmp_path / "a.tif")
    assert caught.value.problem.code == "colours"


def test_cmyk_becomes_the_colours_it_shows(tmp_path: Path) -> None:
    image = open_picture(zoo.cmyk(tmp_path / "a.jpg"))
    assert image.mode == "RGB"
    assert np.allclose(image.getpixel((48, 32)), (255, 0, 0), atol=4)
    assert np.allclose(image.getpixel((4, 32)), (0, 255, 255), atol=4)


@pytest.mark.parametrize("make", [zoo.half_transparent, zoo.palette_transparent])
def test_transparent_parts_are_white_and_hidden_colours_stay_hidden(
    tmp_path: Path, make: Callable[[Path], Path]
) -> None:
    path = make(tmp_path / "a.png")
    image = open_picture(path)
    assert image.getpixel((8, 8)) == (255, 0, 0)
    assert image.getpixel((56, 8)) == (255, 255, 255)
    assert codes(path) == ["transparent"]


def test_opaque_alpha_is_no_problem(tmp_path: Path) -> None:
    zoo.noise().convert("RGBA").save(tmp_path / "a.png")
    assert codes(tmp_path / "a.png") == []


# The picture is red on the left, blue on the right; where is red once it is upright?
@pytest.mark.parametrize(
    ("orientation", "size", "red_at"),
    [
        (1, (96, 64), (8, 32)),
        (2, (96, 64), (88, 32)),
        (3, (96, 64), (88, 32)),
        (4, (96, 64), (8, 32)),
        (5, (64, 96), (32, 8)),
        (6, (64, 96), (32, 8)),
        (7, (64, 96), (32, 88)),
        (8, (64, 96), (32, 88)),
    ],
)
def test_every_orientation_of_a_camera_is_turned_upright(
    tmp_path: Path, orientation: int, size: tuple[int, int], red_at: tuple[int, int]
) -> None:
    image = open_picture(zoo.rotated(tmp_path / "a.jpg", orientation))
    assert image.size == size
    assert np.allclose(image.getpixel(red_at), (254, 0, 0), atol=6)


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png"])
def test_the_first_frame_of_an_animation_is_used_with_a_warning(tmp_path: Path, name: str) -> None:
    path = zoo.animated(tmp_path / name)
    assert codes(path) == ["animated"]
    assert np.allclose(open_picture(path).getpixel((32, 32)), (255, 0, 0), atol=6)


def test_a_wrong_ending_is_read_as_what_it_is_with_a_warning(tmp_path: Path) -> None:
    zoo.noise().save(tmp_path / "a.jpg", format="PNG")
    assert codes(tmp_path / "a.jpg") == ["suffix"]
    assert np.array_equal(np.asarray(open_picture(tmp_path / "a.jpg")), np.asarray(zoo.noise()))


def test_a_format_that_is_not_on_the_list_is_not_decoded(tmp_path: Path) -> None:
    zoo.noise().save(tmp_path / "a.png", format="TGA")
    with pytest.raises(UnusablePicture) as caught:
        open_picture(tmp_path / "a.png")
    assert caught.value.problem.code == "not_a_picture"


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_notes_and_profiles_do_not_cost_the_picture(tmp_path: Path) -> None:
    assert open_picture(zoo.damaged_exif(tmp_path / "exif.jpg")).size == (96, 64)
    path = zoo.damaged_profile(tmp_path / "profile.png")
    assert codes(path) == ["colour_profile"]
    assert np.array_equal(np.asarray(open_picture(path)), np.asarray(zoo.noise(seed=10)))


@pytest.mark.parametrize("suffix", [".bmp", ".tif", ".avif", ".webp", ".gif", ".jpeg"])
def test_each_format_on_the_list_is_read(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"水墨 山水{suffix}"
    zoo.halves().save(path)
    assert codes(path) == []
    assert np.allclose(open_picture(path).getpixel((8, 8)), (255, 0, 0), atol=12)


# --- what a picture may cost -------------------------------------------------------------------------------------


def progressive_jpeg(size: int, extra_scans: int) -> bytes:
    """A JPEG whose last scan is repeated: small on the disk, and each scan makes the decoder go over all pixels."""
    buffer = io.BytesIO()
    Image.new("L", (size, size), 90).save(buffer, format="JPEG", progressive=True)
    data = buffer.getvalue()
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * (1 + extra_scans) + data[-2:]


def test_a_jpeg_of_endless_scans_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    (tmp_path / "bomb.jpg").write_bytes(progressive_jpeg(2400, 2000))
    started = time.process_time()
    with pytest.raises(UnusablePicture) as caught:
        open_picture(tmp_path / "bomb.jpg")
    assert caught.value.problem.code == "too_many_scans"
    assert time.process_time() - started < 2  # decoding it takes minutes
    (tmp_path / "usual.jpg").write_bytes(progressive_jpeg(200, 10))
    assert open_picture(tmp_path / "usual.jpg").size == (200, 200)


def test_large_pictures_are_decoded_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    working: list[int] = [0]
    most: list[int] = []
    real = module.to_rgb

    def watched(image: Image.Image) -> tuple[Image.Image, list[Problem]]:
        working[0] += 1
        most.append(working[0])
        time.sleep(0.02)
        working[0] -= 1
        return real(image)

    monkeypatch.setattr(module, "to_rgb", watched)
    path = zoo.good(tmp_path / "a.png", seed=1)
    width, height = Image.open(path).size
    for limit, wanted in ((width * height - 1, 1), (width * height, 3)):
        monkeypatch.setattr(module, "BIG_PIXELS", limit)
        most.clear()
        with ThreadPoolExecutor(3) as pool:
            list(pool.map(open_picture, [path] * 3))
        assert max(most) == wanted
