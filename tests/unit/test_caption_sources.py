"""Every place that a caption can come from, alone and in their order."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin

from tests import zoo
from trainer.dataset import listing, walk
from trainer.dataset.caption_sources import captions_in
from trainer.dataset.scan import scan_folder

XMP = (
    '<?xpacket begin="" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF '
    'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description xmlns:dc="http://purl.org/dc/elements/1.1/">'
    '<dc:description><rdf:Alt><rdf:li xml:lang="x-default">a misty 山</rdf:li></rdf:Alt></dc:description>'
    "</rdf:Description></rdf:RDF></x:xmpmeta>"
)


def only(folder: Path) -> tuple[str | None, str, tuple[str, ...]]:
    (facts,) = scan_folder(folder).pictures
    return facts.caption, facts.caption_source, facts.captions


@pytest.mark.parametrize(
    ("name", "text", "caption", "several"),
    [
        ("a.txt", "a hill", "a hill", 1),
        ("a.caption", "a hill", "a hill", 1),
        ("a.png.txt", "a hill", "a hill", 1),
        ("a.json", '["a hill", "hills"]', "a hill", 2),
        ("a.json", '{"captions": ["a hill", "hills"], "caption": "no"}', "a hill", 2),
        ("a.json", '{"text": "a hill"}', "a hill", 1),
        ("a.json", '{"caption": "", "tags": ["green_hill", "sky"]}', "green hill, sky", 1),
        ("a.png.json", '{"tags": "green_hill blue_sky"}', "green hill, blue sky", 1),
        ("a.json", '{"tags": {"general": ["hill"], "artist": ["zib"]}}', "hill, zib", 1),
        ("metadata.jsonl", '{"file_name": "b.png", "text": "no"}\n{"file_name": "a.png", "text": "a hill"}\n', "a hill", 1),
        ("metadata.csv", "file_name,text\nb.png,no\na.png,\"a hill, green\"\n", "a hill, green", 1),
        ("captions.csv", "a.png;a hill\n", "a hill", 1),
        ("captions.csv", "a.png,a hill, green, wide\n", "a hill, green, wide", 1),
        ("metadata.csv", "file_name,text\nb.png,no\na.png,a hill, green\n", "a hill, green", 1),
        ("metadata.csv", "text,file_name\nno, no, no,b.png\na hill,a.png\n", "a hill", 1),
        ("metadata.jsonl", 'no JSON\n[1]\n{"file_name": "a.png", "text": "a hill"}\n', "a hill", 1),
        ("captions.tsv", "image\tcaption\na.png\ta hill, wide\n", "a hill, wide", 1),
        ("metadata.json", '{"C:\\\\set\\\\a.png": {"caption": "a hill", "tags": "green, sky"}}', "a hill, green, sky", 1),
        ("metadata.json", '[{"filename": "a.png", "caption": "a hill"}]', "a hill", 1),
    ],
)  # fmt: skip
def test_captions_of_files_and_tables(tmp_path: Path, name: str, text: str, caption: str, several: int) -> None:
    zoo.good(tmp_path / "a.png")
    (tmp_path / name).write_text(text, encoding="utf-8")
    found, source, captions = only(tmp_path)
    assert (found, source) == (caption, name)
    assert len(captions) == several


def with_text(path: Path, **texts: str) -> Path:
    info = PngImagePlugin.PngInfo()
    for key, value in texts.items():
        info.add_itxt(key, value)
    zoo.noise().save(path, pnginfo=info)
    return path


def test_captions_out_of_the_picture_itself(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x010E] = "a lake in the morning"
    zoo.noise(seed=1).save(tmp_path / "1.jpg", exif=exif)
    zoo.noise(seed=2).save(tmp_path / "2.jpg", xmp=XMP.encode())
    zoo.noise(seed=3).save(tmp_path / "3.webp", xmp=XMP.encode())
    with_text(tmp_path / "4.png", Description="a 树")
    with_text(tmp_path / "5.png", parameters="a boat <lora:x:1>, sea\nNegative prompt: bad\nSteps: 20, Seed: 1")
    exif = Image.Exif()
    exif[0x9C9C] = "a cloud\0".encode("utf-16-le")
    zoo.noise(seed=6).save(tmp_path / "6.jpg", exif=exif)
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + "a bird".encode("utf-16-be")
    zoo.noise(seed=7).save(tmp_path / "7.jpg", exif=exif)
    # Photoshop's block with IPTC record 2:120.
    record = b"\x1c\x02\x78" + len(b"a fish").to_bytes(2, "big") + b"a fish"
    block = b"Photoshop 3.0\x008BIM\x04\x04\x00\x00" + len(record).to_bytes(4, "big") + record
    zoo.noise(seed=8).save(tmp_path / "8.jpg", extra=b"\xff\xed" + (len(block) + 2).to_bytes(2, "big") + block)
    found = {facts.name: facts.caption for facts in scan_folder(tmp_path).pictures}
    assert found == {
        "1.jpg": "a lake in the morning",
        "2.jpg": "a misty 山",
        "3.webp": "a misty 山",
        "4.png": "a 树",
        "5.png": "a boat , sea",
        "6.jpg": "a cloud",
        "7.jpg": "a bird",
        "8.jpg": "a fish",
    }
    assert {facts.caption_source for facts in scan_folder(tmp_path).pictures} == {"the picture itself"}


@pytest.mark.parametrize("junk", ["OLYMPUS DIGITAL CAMERA", "SONY DSC", "DCIM\\100MEDIA\\DJI_0001.JPG", "---", ""])
def test_what_cameras_say_of_themselves_is_no_caption(tmp_path: Path, junk: str) -> None:
    exif = Image.Exif()
    exif[0x010E] = junk
    zoo.noise().save(tmp_path / "a.jpg", exif=exif)
    assert only(tmp_path)[0] is None


def test_hostile_notes_are_passed_over(tmp_path: Path) -> None:
    bomb = '<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]>' + XMP.replace("a misty 山", "&b;")
    zoo.noise(seed=1).save(tmp_path / "1.jpg", xmp=bomb.encode())
    zoo.noise(seed=2).save(tmp_path / "2.jpg", xmp=bomb.encode("utf-16"))
    zoo.noise(seed=3).save(tmp_path / "3.jpg", xmp=b"<x:xmpmeta")
    facts = scan_folder(tmp_path).pictures
    assert [(one.caption, one.is_usable) for one in facts] == [(None, True)] * 3


def test_the_order_of_sources(tmp_path: Path) -> None:
    with_text(tmp_path / "a.png", Description="of the picture")
    assert only(tmp_path)[0] == "of the picture"
    order = ["captions.csv", "metadata.csv", "metadata.jsonl", "a.png.txt", "a.json", "a.caption", "a.txt"]
    texts = {"captions.csv": "a.png,captions.csv\n", "metadata.csv": "file_name,text\na.png,metadata.csv\n"}
    texts |= {"metadata.jsonl": '{"file_name": "a.png", "text": "metadata.jsonl"}', "a.json": '["a.json"]'}
    for name in order:
        (tmp_path / name).write_text(texts.get(name, name), encoding="utf-8")
        assert only(tmp_path)[:2] == (name, name)
    (tmp_path / "a.txt").write_text("")
    assert only(tmp_path)[0] is None, "an empty file says that there is none"


def test_tables_count_for_folders_in_theirs_and_the_nearest_wins(tmp_path: Path) -> None:
    (tmp_path / "train" / "deep").mkdir(parents=True)
    zoo.good(tmp_path / "train" / "a.png", seed=1)
    zoo.good(tmp_path / "train" / "deep" / "b.png", seed=2)
    rows = [{"file_name": "train/a.png", "text": "outer"}, {"file_name": "train/deep/b.png", "text": "outer b"}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "train" / "metadata.csv").write_text("file_name,text\na.png,inner\n")
    captions = {facts.name: facts.caption for facts in scan_folder(tmp_path).pictures}
    assert captions == {"train/a.png": "inner", "train/deep/b.png": "outer b"}


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("metadata.jsonl", '{"file_name": "a.png", "text": "a hill"}\nno JSON\n\n[1]\n', "line 2 (Expecting value), and 1 more are left out"),
        ("metadata.csv", "text,file_name\nno, no,b.png\na hill,a.png\n", "the row of no (more cells than columns) is left out"),
        ("metadata.jsonl", '\n\nno JSON\n', "cannot be read (line 3 (Expecting value))"),
    ],
)  # fmt: skip
def test_rows_that_cannot_be_read_are_named_and_the_others_count(
    tmp_path: Path, name: str, text: str, said: str
) -> None:
    zoo.good(tmp_path / "a.png")
    (tmp_path / name).write_text(text)
    scan = scan_folder(tmp_path)
    assert scan.pictures[0].caption == ("a hill" if "a hill" in text else None)
    assert said in scan.problems[0].message


@pytest.mark.parametrize("text", ["{", '{"file_name": 3}', "[1]", "null"])
def test_a_broken_table_is_a_warning(tmp_path: Path, text: str) -> None:
    zoo.good(tmp_path / "a.png", "a hill")
    (tmp_path / "metadata.jsonl").write_text(text)
    (tmp_path / "metadata.csv").write_bytes(b"file_name,text\na.png,\0\1\2\n")
    (tmp_path / "metadata.parquet").write_bytes(b"PAR1")
    scan = scan_folder(tmp_path)
    assert scan.pictures[0].caption == "a hill"
    messages = " ".join(problem.message for problem in scan.problems)
    assert "metadata.csv cannot be read" in messages
    assert "metadata.parquet is not read" in messages


@pytest.mark.parametrize(
    ("data", "encoding"),
    [
        ("file_name;text\na.png;un café à Besançon – été\n".encode("cp1252"), "cp1252"),
        ("file_name,text\na.png,un café à Besançon – été\n".encode("utf-16"), ""),
    ],
)
def test_tables_as_spreadsheets_save_them_are_read(tmp_path: Path, data: bytes, encoding: str) -> None:
    zoo.good(tmp_path / "a.png")
    (tmp_path / "metadata.csv").write_bytes(data)
    scan = scan_folder(tmp_path)
    assert scan.pictures[0].caption == "un café à Besançon – été"
    messages = [problem.message for problem in scan.problems]
    assert messages == ([f"The table of captions metadata.csv was read as {encoding}."] if encoding else [])


def test_other_ends_of_lines_within_json_lines_are_text(tmp_path: Path) -> None:
    for seed, name in enumerate("ab"):
        zoo.good(tmp_path / f"{name}.png", seed=seed)
    rows = ['{"file_name": "a.png", "text": "a hill\u2028far away"}', '{"file_name": "b.png", "text": "a\x85lake"}']
    (tmp_path / "metadata.jsonl").write_bytes("\r\n".join(rows).encode())
    scan = scan_folder(tmp_path)
    assert [facts.caption_source for facts in scan.pictures] == ["metadata.jsonl"] * 2
    assert scan.pictures[0].captions == ("a hill far away",)
    assert scan.problems == ()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("metadata.jsonl", '{"file_name": "a.png", "text": "one"}\n{"file_name": "./a.png", "text": "two"}\n'),
        ("metadata.csv", "file_name,text\na.png,one\na.png,two\na.png,one\n"),
    ],
)
def test_several_rows_of_a_picture_are_several_captions(tmp_path: Path, name: str, text: str) -> None:
    zoo.good(tmp_path / "a.png")
    (tmp_path / name).write_text(text)
    assert only(tmp_path) == ("one", name, ("one", "two"))


def test_paths_of_another_place_that_end_alike_are_nobodys(tmp_path: Path) -> None:
    for seed, name in enumerate("ab"):
        zoo.good(tmp_path / f"{name}.png", seed=seed)
    rows = {"C:\\x\\a.png": "one", "C:\\y\\a.png": "two", "C:\\y\\b.png": "three"}
    (tmp_path / "metadata.json").write_text(json.dumps({key: {"caption": text} for key, text in rows.items()}))
    scan = scan_folder(tmp_path)
    assert [facts.captions for facts in scan.pictures] == [(), ("three",)]
    assert "several pictures named a.png" in scan.problems[0].message


@pytest.mark.parametrize("data", [3, None, [1], {"x": 1}, {"captions": 3}])
def test_json_without_captions(data: object) -> None:
    assert not captions_in(data)


def test_a_scan_is_remembered_until_something_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walk, "_SETTLED_NS", 0)
    zoo.good(tmp_path / "a.png", "a hill")
    zoo.good(tmp_path / "b.png", seed=2)
    time.sleep(0.02)
    first = scan_folder(tmp_path)
    assert scan_folder(tmp_path) is first
    assert listing.list_folder(tmp_path) is listing.list_folder(tmp_path)
    (tmp_path / "a.txt").write_text("a lake")
    time.sleep(0.02)
    assert scan_folder(tmp_path).pictures[0].caption == "a lake"
    (tmp_path / "b.png").rename(tmp_path / "c.png")
    time.sleep(0.02)
    assert [facts.name for facts in scan_folder(tmp_path).pictures] == ["a.png", "c.png"]
    (tmp_path / "metadata.csv").write_text("file_name,text\nc.png,of the table\n")
    time.sleep(0.02)
    again = scan_folder(tmp_path)
    assert again.pictures[1].caption == "of the table"
    (tmp_path / "unrelated.dat").write_text("x")
    time.sleep(0.02)
    assert scan_folder(tmp_path) is again
