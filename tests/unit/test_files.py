"""Files are whole or absent, and names are safe on every system."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from trainer import files
from trainer.errors import ResourceError
from trainer.files import sweep_partial


def test_write_replaces_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "value.txt"
    files.write_text(target, "old")

    def half_then_fail(temporary: Path) -> None:
        temporary.write_text("ne")
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError):
        files.write_atomically(target, half_then_fail)
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_full_disk_is_said_in_words_and_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "checkpoint.bin"
    files.write_bytes(target, b"good")

    def full(temporary: Path) -> None:
        temporary.write_bytes(b"x")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(ResourceError, match="disk is full") as caught:
        files.write_atomically(target, full, "the checkpoint")
    assert "the checkpoint" in str(caught.value)
    assert target.read_bytes() == b"good"


def test_require_free_names_needed_and_free(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match=r"needed, .* free"):
        files.require_free(tmp_path / "not yet there", 10**18, "the run")


def test_replace_tries_again_after_a_sharing_violation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target, real, failures = tmp_path / "a", tmp_path / "b", os.replace, [PermissionError(), PermissionError()]
    source.write_text("new")

    def flaky(first: Path, second: Path) -> None:
        if failures:
            raise failures.pop()
        real(first, second)

    monkeypatch.setattr(files.os, "replace", flaky)
    files.replace(source, target)
    assert target.read_text() == "new"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("../../etc/passwd", "_.._etc_passwd"),
        ("水墨 风格", "水墨 风格"),
        ("CON", "_CON"),
        ("nul.txt", "_nul.txt"),
        ("a\x00b<c>", "a_b_c_"),
        ("  ...  ", "untitled"),
        ("-rf", "rf"),
    ],
)
def test_safe_name(given: str, expected: str) -> None:
    assert files.safe_name(given) == expected


def test_safe_name_is_short_enough_for_every_file_system() -> None:
    assert len(files.safe_name("墨" * 300).encode()) <= 100


def test_unused_path_never_names_an_existing_file(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    (tmp_path / "a 2.png").touch()
    assert files.unused_path(tmp_path / "a.png").name == "a 3.png"


def test_is_inside_resolves_links_and_dots(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "root-evil"
    root.mkdir()
    outside.mkdir()
    (root / "link").symlink_to(outside)
    assert files.is_inside(root / "a" / "b", root)
    assert not files.is_inside(root / ".." / "root-evil" / "x", root)
    assert not files.is_inside(root / "link" / "x", root)
    assert not files.is_inside(outside, root)


def test_sweeping_leaves_what_a_living_process_is_writing(tmp_path: Path) -> None:
    # The one that starts a job writes into its folder while the job begins to work there.
    living, dead = tmp_path / f".partial-{os.getppid()}-1.json", tmp_path / ".partial-999999999-1.json"
    own, other = tmp_path / f".partial-{os.getpid()}-1.json", tmp_path / ".partial-step-000010"
    for path in (living, dead, own):
        path.write_text("x")
    other.mkdir()
    assert set(sweep_partial(tmp_path)) == {dead, own, other}
    assert list(tmp_path.iterdir()) == [living]
