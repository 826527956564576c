"""A data set is checked: findings, verdicts, fixes that can be undone, the job's pass, the command."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from app.services.dataset_check import DatasetCheckService
from tests import zoo
from tests.leaves import cropped, leaves, resized
from trainer.cli.main import main
from trainer.dataset import record
from trainer.dataset.doctor import measuring, similar
from trainer.dataset.doctor.checks.contradictions import opposites
from trainer.dataset.doctor.diagnosis import CHECKS, check_dataset, diagnose, fix, ignore, of_check
from trainer.dataset.doctor.findings import Finding, Report, Verdict
from trainer.dataset.doctor.measures import Measures
from trainer.dataset.doctor.settings import CheckSettings
from trainer.dataset.preparing import turn_pictures
from trainer.dataset.store import DatasetStore
from trainer.dataset.token_counts import token_counter
from trainer.errors import Cancelled, DatasetError
from trainer.paths import ASSETS, DataFolder

SETTINGS = CheckSettings(resolution=128, max_caption_tokens=75)


@pytest.fixture
def data(tmp_path: Path) -> DataFolder:
    return DataFolder(tmp_path / "data")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five good pictures and one of each fault."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index in range(5):
        save(folder, f"good {index}.png", leaves(index, 160), f"zsy, leaves of kind {index}, day")
    save(folder, "copy.jpg", resized(0.9)(cropped(0.04, 0, 0, 0)(leaves(0, 160))), "zsy, leaves of kind 0, night")
    boxed = Image.new("RGB", (160, 220), (0, 0, 0))
    boxed.paste(leaves(10, 160), (0, 30))
    save(folder, "boxed.png", boxed, "a picture, " + ", ".join(f"word{number}" for number in range(60)))
    save(folder, "tiny.png", leaves(11, 48), "")
    zoo.truncated(folder / "broken.jpg")
    return folder


def save(folder: Path, name: str, image: Image.Image, caption: str) -> None:
    image.save(folder / name)
    if caption:
        (folder / name).with_suffix(".txt").write_text(caption, encoding="utf-8")


@pytest.fixture
def store(data: DataFolder, folder: Path) -> DatasetStore:
    store = DatasetStore(data)
    store.create_from("set", [folder], trigger_word="zsy")
    return store


def found(report: Report, check: str) -> list[tuple[str, ...]]:
    return [finding.pictures for finding in of_check(report, check)]


@pytest.fixture
def copies(tmp_path: Path) -> Path:
    """Where copies of one picture are put."""
    (tmp_path / "copies").mkdir()
    return tmp_path / "copies"


@pytest.mark.parametrize(
    ("better", "worse", "changes", "why"),
    [
        ("z.png", "a.webp", {"quality": 40}, "was kept without loss"),
        ("z.png", "a.png", {"grey": True}, "is in colour"),
        ("z.jpg", "a.jpg", {"quality": 50}, "was compressed the least"),
        ("z.png", "a.png", {"scale": 0.8}, "has the most detail of them"),
    ],
)
def test_of_copies_the_best_is_kept_and_it_is_said_why(
    data: DataFolder, copies: Path, better: str, worse: str, changes: dict, why: str
) -> None:
    picture = leaves(3, 320)
    picture.save(copies / better, quality=95)
    worse_one = picture.convert("L") if changes.get("grey") else resized(changes.get("scale", 1.0))(picture)
    worse_one.save(copies / worse, quality=changes.get("quality", 95))
    (finding,) = of_check(check_dataset(data, str(copies), SETTINGS), "duplicates")
    assert (finding.keep, finding.against) == (better, (worse,))
    assert why in finding.message


def test_of_equal_copies_none_is_called_the_best(data: DataFolder, copies: Path) -> None:
    for name in ("a.png", "b.bmp"):
        leaves(3, 200).save(copies / name)
    (finding,) = of_check(check_dataset(data, str(copies), SETTINGS), "duplicates")
    assert "One is as good as the other" in finding.message


@pytest.mark.parametrize("checks", [("duplicates",), ("duplicates", "captions"), ("captions", "duplicates")])
def test_the_copy_that_is_kept_takes_over_the_only_caption(
    store: DatasetStore, data: DataFolder, copies: Path, checks: tuple[str, ...]
) -> None:
    leaves(3, 320).save(copies / "a.png")
    save(copies, "b.jpg", resized(0.5)(leaves(3, 320)), "written by hand, robot")
    store.create_from("twins", [copies])
    for check in checks:
        found = of_check(check_dataset(data, "twins", SETTINGS), check)
        if found:
            fix(store, "twins", found)
    assert [facts.name for facts in store.scan("twins").usable] == ["a.png"]
    assert store.caption_of("twins", "a.png") == "written by hand, robot"


def test_what_is_kept_of_copies_is_said_before_as_it_is_done(
    store: DatasetStore, data: DataFolder, copies: Path
) -> None:
    leaves(3, 320).save(copies / "a.png")
    save(copies, "b.jpg", leaves(3, 320), "written by hand, robot")
    store.create_from("twins", [copies])
    service = DatasetCheckService(data)
    (finding,) = of_check(check_dataset(data, "twins", SETTINGS), "duplicates")
    said = {keep: service.keeping("twins", finding, keep) for keep in finding.pictures}
    assert said == {"a.png": "Keep a.png alone, with the caption “written by hand, robot”", "b.jpg": "Keep b.jpg alone"}
    assert service.fix("twins", finding, "a.png") == said["a.png"]


def test_a_sets_own_words_stand_for_captions_that_are_missing(
    store: DatasetStore, data: DataFolder, copies: Path
) -> None:
    leaves(3, 200).save(copies / "IMG_1.png")
    store.create_from("kohya", [copies], training={"instance_prompt": "zib robot"})
    (finding,) = of_check(check_dataset(data, "kohya", SETTINGS), "captions")
    assert (finding.verdict, finding.fix) == (Verdict.GOOD, None)
    assert "“zib robot”" in finding.message
    store.create_from("plain", [copies])
    (finding,) = of_check(check_dataset(data, "plain", SETTINGS), "captions")
    assert "as if nothing were to be said of it" in finding.message


def test_every_fault_is_found_and_nothing_else_is_held_against_a_picture(store: DatasetStore, data: DataFolder) -> None:
    report = check_dataset(data, "set", SETTINGS)
    assert found(report, "files") == [("broken.jpg",)]
    assert [set(group) for group in found(report, "duplicates")] == [{"copy.jpg", "good 0.png"}]
    assert of_check(report, "duplicates")[0].keep == "good 0.png"
    assert found(report, "borders") == [("boxed.png",)]
    assert found(report, "size") == [("tiny.png",)]
    assert found(report, "captions") == [("tiny.png",)]
    assert found(report, "caption_length") == [("boxed.png",)]
    assert found(report, "trigger") == [("boxed.png",)]
    assert "“day” and “night”" in of_check(report, "contradictions")[0].message
    verdicts = {name: verdict for name, verdict in report.verdicts.items() if verdict is not Verdict.GOOD}
    assert verdicts == {
        "broken.jpg": Verdict.LEAVE_OUT,
        "copy.jpg": Verdict.LEAVE_OUT,
        "tiny.png": Verdict.LEAVE_OUT,
        "boxed.png": Verdict.USABLE,
    }
    assert report.summary.startswith("Not ready: 3 of 9 pictures are better left out.")
    assert report.num_unmeasured == 0


def test_fixes_are_one_change_and_are_taken_back(store: DatasetStore, data: DataFolder) -> None:
    before = check_dataset(data, "set", SETTINGS)
    assert fix(store, "set", of_check(before, "duplicates")) == 1
    after = diagnose(data, "set", SETTINGS)
    assert found(after, "duplicates") == []
    assert "copy.jpg" not in after.pictures
    assert "good 0.png" in after.pictures
    fix(store, "set", [*of_check(after, "trigger"), *of_check(after, "captions")])
    assert store.caption_of("set", "boxed.png").startswith("zsy, a picture")
    assert store.caption_of("set", "tiny.png") == "zsy, tiny"
    store.undo("set")
    store.undo("set")
    assert diagnose(data, "set", SETTINGS) == before
    with pytest.raises(DatasetError, match="nothing here that can be fixed"):
        fix(store, "set", of_check(before, "variety"))


def test_a_long_caption_is_cut_where_training_cuts_it(store: DatasetStore, data: DataFolder) -> None:
    count = token_counter(SETTINGS.base, data).count_one
    report = check_dataset(data, "set", SETTINGS)
    fix(store, "set", of_check(report, "caption_length"))
    caption = store.caption_of("set", "boxed.png")
    assert caption.startswith("a picture, word0, word1")
    assert count(f"zsy, {caption}") <= 75 < count(f"zsy, {caption}, word99")
    assert found(diagnose(data, "set", SETTINGS), "caption_length") == []


def test_several_captions_of_a_picture_stay_several(data: DataFolder, tmp_path: Path) -> None:
    folder = tmp_path / "several"
    folder.mkdir()
    for index in range(5):
        image = Image.new("RGB", (240, 240), "white")
        image.paste(leaves(index, 140), (50, 50))
        save(folder, f"{index}.png", image, "a leaf")
    long = ", ".join(f"word{number}" for number in range(60))
    (folder / "0.txt").unlink()
    (folder / "0.json").write_text(json.dumps(["a red leaf", "zsy, a leaf", "on white background"]))
    (folder / "1.txt").write_text(f"short\n{long}")
    (folder / "2.txt").write_text(f"{long[:90]}\n{long[90:180]}")
    save(folder, "again.jpg", image.resize((220, 220)), "zsy, one\nand a longer one, day\nnight, three")
    store = DatasetStore(data)
    store.link(folder)
    store.set_trigger_word("several", "zsy")
    report = check_dataset(data, "several", SETTINGS)
    remark, flaw = sorted(of_check(report, "caption_length"), key=lambda each: each.verdict.value)
    assert (remark.pictures, remark.verdict, remark.fix) == (("2.png",), Verdict.GOOD, None)
    assert (flaw.pictures, flaw.verdict) == (("1.png",), Verdict.USABLE)
    fix(store, "several", [flaw])
    short, cut = store.captions_of("several", "1.png")
    assert (short, cut[:13], len(cut) < len(long)) == ("short", "word0, word1,", True)
    fix(store, "several", of_check(report, "contradictions"))
    assert store.captions_of("several", "4.png") == ("zsy, one", "and a longer one, day", "night, three")
    assert "“day” and “night”" in " ".join(each.message for each in of_check(report, "contradictions"))
    fix(store, "several", of_check(diagnose(data, "several", SETTINGS), "trigger"))
    assert store.captions_of("several", "0.png") == ("zsy, a red leaf", "zsy, a leaf", "zsy, on white background")
    fix(store, "several", of_check(diagnose(data, "several", SETTINGS), "background"))
    tag = ", white background"
    assert store.captions_of("several", "0.png") == (
        *(f"zsy, a red leaf{tag}", f"zsy, a leaf{tag}"),
        "zsy, on white background",
    )
    assert found(diagnose(data, "several", SETTINGS), "trigger") == []


def test_what_is_ignored_stays_ignored_and_counts_for_nothing(store: DatasetStore, data: DataFolder) -> None:
    report = check_dataset(data, "set", SETTINGS)
    ignore(store, "set", of_check(report, "borders"))
    after = diagnose(data, "set", SETTINGS)
    assert found(after, "borders") == []
    assert after.num_ignored == 1
    assert "borders|boxed.png" in record.load_state(data.datasets / "set")[record.IGNORED]
    change = store.undo("set")
    assert change is not None
    assert change.title == "Ignored borders"
    assert diagnose(data, "set", SETTINGS) == report


def test_bars_are_cropped_and_the_crop_is_what_is_checked_then(store: DatasetStore, data: DataFolder) -> None:
    report = check_dataset(data, "set", SETTINGS)
    proposed = of_check(report, "borders")[0].fix
    assert proposed is not None
    ((document, name), box), *_ = proposed.changes.items()
    assert (document, name) == (record.CROPS, "boxed.png")
    left, top, right, bottom = box
    assert (left, right) == (0, 160)
    assert 30 <= top <= 32
    assert 188 <= bottom <= 190
    fix(store, "set", of_check(report, "borders"))
    facts = next(facts for facts in store.scan("set").pictures if facts.name == "boxed.png")
    assert (facts.width, facts.height) == (160, bottom - top)
    assert found(check_dataset(data, "set", SETTINGS), "borders") == []
    store.undo("set")
    assert check_dataset(data, "set", SETTINGS) == report


def test_a_pass_that_is_cancelled_goes_on_where_it_was(
    store: DatasetStore, data: DataFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(what: str, done: int, total: int) -> None:
        if done == 4:
            raise Cancelled("Stopped.")

    with pytest.raises(Cancelled):
        check_dataset(data, "set", SETTINGS, stop)
    cut = diagnose(data, "set", SETTINGS)
    assert 0 < len(cut.verdicts) - 1 - cut.num_unmeasured < 8 or cut.num_unmeasured == 0
    cache = next((data.cache / "check").glob("*.jsonl"))
    kept = cache.read_bytes()
    cache.write_bytes(kept[:-20])  # as after a power cut
    times: list[Measures] = []
    real = measuring.measure
    monkeypatch.setattr(measuring, "measure", lambda *given: times.append(real(*given)) or times[-1])
    whole = check_dataset(data, "set", SETTINGS)
    assert whole.num_unmeasured == 0
    assert len(times) == 8 - (len(kept.splitlines()) - 1)
    times.clear()
    assert check_dataset(data, "set", SETTINGS) == whole
    assert times == []


def test_comparing_is_told_can_be_cancelled_and_is_done_once(
    store: DatasetStore, data: DataFolder, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []

    def stop(what: str, done: int, total: int) -> None:
        told.append(what)
        if what == "Comparing the pictures":
            raise Cancelled("stop")

    with pytest.raises(Cancelled):
        check_dataset(data, "set", SETTINGS, stop)
    shown = DatasetCheckService(data)
    # All is measured, but nothing compared: whoever only looks does not begin with it.
    assert shown.report("set", SETTINGS).num_unmeasured == len(store.scan("set").usable)
    report = check_dataset(data, "set", SETTINGS, lambda what, *_: told.append(what))
    assert told[-1] == "Laying pictures over one another"
    real = similar.groups
    compared: list[int] = []
    monkeypatch.setattr(similar, "groups", lambda measures, *_: compared.append(len(measures)) or real(measures))
    assert shown.report("set", SETTINGS) == report == diagnose(data, "set", SETTINGS)
    store.remove_pictures("set", ["good 3.png"])
    assert [set(group) for group in found(shown.report("set", SETTINGS), "duplicates")] == [{"copy.jpg", "good 0.png"}]
    assert compared == []
    store.remove_pictures("set", ["copy.jpg"])
    assert found(shown.report("set", SETTINGS), "duplicates") == []
    assert compared == [1], "no more than what is left of its group"
    # A file twice, which was there once when the pictures were compared, is not taken for compared.
    plain = str(folder)
    check_dataset(data, plain, SETTINGS)
    shutil.copyfile(folder / "good 1.png", folder / "good 9.png")
    assert shown.report(plain, SETTINGS).num_unmeasured == 1
    groups = found(check_dataset(data, plain, SETTINGS), "duplicates")
    assert sorted(map(sorted, groups)) == [["copy.jpg", "good 0.png"], ["good 1.png", "good 9.png"]]
    for path in (data.cache / "check").glob("*-alike.json"):
        path.write_text("{")
    assert shown.report(plain, SETTINGS).num_unmeasured == len(store.scan(plain).usable)
    assert sorted(found(diagnose(data, plain, SETTINGS), "duplicates")) == sorted(groups)


def test_a_renamed_picture_is_not_measured_again(
    folder: Path, data: DataFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_dataset(data, str(folder), SETTINGS)
    (folder / "good 1.png").rename(folder / "other.png")
    monkeypatch.setattr(measuring, "measure", lambda *given: pytest.fail("measured again"))
    report = check_dataset(data, str(folder), SETTINGS)
    assert "other.png" in report.pictures
    assert report.num_unmeasured == 0


def test_marks_that_all_share_and_a_picture_of_another_kind_are_remarked(tmp_path: Path, data: DataFolder) -> None:
    folder = tmp_path / "marked"
    folder.mkdir()
    for index in range(14):
        image = leaves(index, 128, 250)
        ImageDraw.Draw(image).rectangle((84, 100, 120, 118), outline=(255, 255, 255), width=2)
        ImageDraw.Draw(image).line((84, 100, 120, 118), fill=(0, 0, 0), width=2)
        save(folder, f"{index}.png", image, f"zsy {index}")
    drawing = Image.new("RGB", (128, 128), (250, 250, 255))
    ImageDraw.Draw(drawing).line((20, 30, 100, 90), fill=(0, 0, 0), width=3)
    save(folder, "drawing.png", drawing, "zsy line")
    report = check_dataset(data, str(folder), SETTINGS)
    overlay = of_check(report, "overlays")
    assert len(overlay) == 1
    assert "bottom, right" in overlay[0].message
    assert found(report, "outliers") == [("drawing.png",)]
    assert all(verdict is Verdict.GOOD for verdict in report.verdicts.values())
    assert report.summary.startswith("Ready to train")


def test_what_most_pictures_have_is_a_remark_about_the_set(tmp_path: Path, data: DataFolder) -> None:
    folder = tmp_path / "plain"
    folder.mkdir()
    for index in range(6):
        image = Image.new("RGB", (160, 160), (255, 255, 255))
        image.paste(leaves(index, 90), (35, 35))
        save(folder, f"{index}.png", image, "zsy thing")
    Image.new("RGB", (160, 160), (9, 9, 9)).save(folder / "blank.png")
    Image.new("RGBA", (160, 160), (9, 9, 9, 0)).save(folder / "clear.png")
    zoo.good(folder / "strip.png", size=(900, 130))
    report = check_dataset(data, str(folder), SETTINGS)
    assert ["6 of 9 pictures have the same plain background" in each.message for each in remarks(report, "background")]
    assert [len(pictures) for pictures in found(report, "captions")] == [1, 1, 1, 6]
    assert found(report, "shape") == [("strip.png",)]
    assert found(report, "transparency") == [("clear.png",)]
    assert "white" in of_check(report, "transparency")[0].message
    assert {name for name, verdict in report.verdicts.items() if verdict is Verdict.LEAVE_OUT} == {
        "blank.png",
        "clear.png",
    }


def remarks(report: Report, check: str) -> list[Finding]:
    return [finding for finding in of_check(report, check) if not finding.pictures]


def test_tags_that_cannot_both_be_true() -> None:
    assert opposites({"1girl", "day", "smile"}) == []
    assert opposites({"day", "night", "black hair", "red hair"}) == [("black hair", "red hair"), ("day", "night")]
    assert opposites({"black hair", "red hair", "multicolored hair"}) == []


TEXTS = [
    "",
    "zsy, a photo of a cat's house at 10:30",
    "Ünïcode 画 — émigré ☂ 👩‍🎨 (word:1.2), l'été",
    "  many   spaces\u3000and\ttabs ",
    "<|endoftext|> don't they'll 12345 ___ hello_world",
    "masterpiece, best quality, 1girl, solo, looking_at_viewer, " * 5,
]


def test_tokens_are_counted_as_the_base_model_does(data: DataFolder, tmp_path: Path) -> None:
    from transformers import CLIPTokenizer

    from trainer.models.clip_tokenizer import bundled_tokenizer
    from trainer.models.text import count_tokens

    folder = ASSETS / "models" / "inkwash-tiny"
    theirs = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    ours = token_counter(str(folder), data)
    assert ours.count(TEXTS) == [count_tokens(theirs, text) for text in TEXTS]
    single = tmp_path / "model.safetensors"
    single.write_bytes(b"")
    ours = token_counter(str(single), data)
    theirs = bundled_tokenizer(ASSETS / "configs" / "sd1" / "tokenizer" / "tokenizer_config.json")
    assert ours.count(TEXTS) == [count_tokens(theirs, text) for text in TEXTS]


def test_every_check_says_why_and_has_a_file_of_its_name() -> None:
    for name, check in CHECKS.items():
        assert check.find.__module__.rpartition(".")[2] == name
        assert len(check.why) > 40
        assert check.title


def test_the_command_checks_fixes_and_takes_back(
    store: DatasetStore, data: DataFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["dataset", "check", "set", "--data-dir", str(data.root), "--resolution", "128"]
    assert main([*common, "--json"]) == 3
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["verdicts"]["boxed.png"] == "usable"
    assert main([*common, "--fix", "duplicates", "size", "files", "--ignore", "borders"]) == 0
    shown = capsys.readouterr().out
    assert "Ready to train" in shown
    assert "1 findings are ignored" in shown
    assert main([*common, "--undo"]) == 0
    assert "Borders (borders): 1" in capsys.readouterr().out
    assert main([*common[:2], "--data-dir", str(data.root)]) == 2
    assert main(["dataset", "chekc", "set", "--data-dir", str(data.root)]) == 2


def test_a_long_picture_is_cropped_to_where_its_detail_is(data: DataFolder, tmp_path: Path) -> None:
    """Drawn at the right end, or the lower one, of white paper: the middle, which training would cut out, is empty."""
    folder = tmp_path / "long"
    folder.mkdir()
    for name, size, place in (("wide.png", (800, 160), (620, 0)), ("tall.png", (160, 800), (0, 620))):
        image = Image.new("RGB", size, "white")
        image.paste(leaves(1, 160), place)
        image.save(folder / name)
    store = DatasetStore(data)
    store.link(folder)
    turn_pictures(store, "long", ["tall.png"], 180)  # its drawing is above now
    fix(store, "long", of_check(check_dataset(data, "long", SETTINGS), "shape"))
    facts = {one.name: one for one in store.scan("long").usable}
    wide, tall = facts["wide.png"].crop, facts["tall.png"].crop
    assert wide is not None
    assert tall is not None
    assert wide.size == (320, 160)
    assert wide.box[0] <= 620
    assert wide.box[2] >= 780
    assert tall.size == (160, 320)
    assert tall.box[1] <= 20
    assert tall.box[3] >= 180
    assert of_check(check_dataset(data, "long", SETTINGS), "shape") == []


def test_words_are_mended_for_equal_pictures_and_shared_backgrounds(data: DataFolder, tmp_path: Path) -> None:
    folder = tmp_path / "words"
    folder.mkdir()
    for index in range(6):
        image = Image.new("RGB", (240, 240), "white")
        image.paste(leaves(index, 140), (50, 50))
        save(folder, f"{index}.png", image, ["a leaf.", "leaves, simple background", "", "stones"][min(index, 3)])
        if index == 0:
            save(folder, "again.jpg", image.resize((220, 220)), "a leaf, on the ground")
    store = DatasetStore(data)
    store.link(folder)
    report = check_dataset(data, "words", SETTINGS)
    fix(store, "words", of_check(report, "contradictions"))
    assert store.caption_of("words", "0.png") == "a leaf, on the ground" == store.caption_of("words", "again.jpg")
    fix(store, "words", of_check(diagnose(data, "words", SETTINGS), "background"))
    captions = {facts.name: facts.caption for facts in store.scan("words").usable}
    assert captions["0.png"] == "a leaf, on the ground, white background"
    assert captions["1.png"] == "leaves, simple background"
    assert not captions["2.png"]
    assert captions["5.png"] == "stones, white background"
