from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from app.services.captions import ROWS, CaptionQuery, CaptionService
from tests import zoo
from tests.unit.test_dataset_store import state
from trainer.cli.main import main
from trainer.dataset.caption_files import caption_differences, export_captions, take_file_captions
from trainer.dataset.captioned import CaptionFilter, captioned_pictures, plan_edit
from trainer.dataset.find_replace import Search, replace_text
from trainer.dataset.store import DatasetStore
from trainer.dataset.tags import CaptionEdit, count_tags, split_tags, tag_edit
from trainer.dataset.token_counts import TOKEN_LIMITS, limit_of, token_counter
from trainer.errors import DatasetError, ModelFileError
from trainer.paths import ASSETS, DataFolder

CAPTIONS = {
    "1.png": "zib robot, Red hat, city",
    "2.png": "zib robot, red hat, red hat, grey sky",
    "10.png": "gray sky,zib robot , lake",
    "sub/3.png": None,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A user's folder, linked: its files may only change on request."""
    folder = tmp_path / "mine"
    (folder / "sub").mkdir(parents=True)
    for seed, (name, caption) in enumerate(CAPTIONS.items()):
        zoo.good(folder / name, caption, seed=seed, size=(32, 32))
    return folder


@pytest.fixture
def name(store: DatasetStore, folder: Path) -> str:
    return store.link(folder).name


def captions(store: DatasetStore, name: str) -> dict[str, str]:
    return {picture.name: picture.text for picture in captioned_pictures(store, name)}


def do(store: DatasetStore, name: str, edit: CaptionEdit, chosen: CaptionFilter | None = None) -> int:
    plan = plan_edit((chosen or CaptionFilter()).apply(captioned_pictures(store, name)), edit)
    store.write_captions(name, plan.values, plan.title)
    return len(plan.changes)


# --- tags --------------------------------------------------------------------------------------------------------


def test_tags_stand_between_commas_but_not_within_wildcards() -> None:
    assert split_tags(" a  b,, {red, dark|blue} hat ,c,") == ["a b", "{red, dark|blue} hat", "c"]
    assert split_tags("a {b, c") == ["a {b", "c"]
    assert split_tags(" , ") == []


def test_tags_are_counted_by_picture_in_their_usual_spelling(store: DatasetStore, name: str) -> None:
    counts = count_tags(picture.captions for picture in captioned_pictures(store, name))
    assert [(item.tag, item.pictures) for item in counts] == [
        ("zib robot", 3),
        ("red hat", 2),
        ("city", 1),
        ("gray sky", 1),
        ("grey sky", 1),
        ("lake", 1),
    ]


@pytest.mark.parametrize(
    ("action", "tags", "new", "before", "after"),
    [
        ("rename", "RED HAT", "blue hat", "a, red hat, b", "a, blue hat, b"),
        ("rename", "grey sky, gray sky", "silver sky", "a, gray sky, b, grey sky", "a, silver sky, b"),
        ("rename", "a", "b", "c, a, B", "c, b"),
        ("rename", "x", "y", "a ,b", "a ,b"),
        ("remove", "b, c", "", "a, B, d, c", "a, d"),
        ("add", "b, c", "", "a, C", "a, C, b"),
        ("add", "b", "", "", "b"),
        ("front", "b, c", "", "a, C", "b, a, C"),
        ("first", "c, b", "", "a, b, c, d", "c, b, a, d"),
        ("unique", "", "", "a, b, A, a", "a, b"),
        ("sort", "", "", "zib, c, A, b", "zib, A, b, c"),
        ("sort", "", "", "c, zib, A", "A, c, zib"),
    ],
)
def test_what_each_action_makes_of_a_caption(action: str, tags: str, new: str, before: str, after: str) -> None:
    assert tag_edit(action, tags, new, trigger_word="zib").change(before) == after


@pytest.mark.parametrize(
    ("action", "tags", "new"),
    [("rename", "a", ""), ("rename", "a", "b, c"), ("rename", "", "b"), ("remove", " , ", "")],
)
def test_actions_without_their_tags_are_refused(action: str, tags: str, new: str) -> None:
    with pytest.raises(DatasetError) as caught:
        tag_edit(action, tags, new)
    assert caught.value.fix


def test_a_rename_over_filtered_pictures_is_one_change_that_can_be_undone(
    store: DatasetStore, name: str, folder: Path
) -> None:
    files = state(folder)
    chosen = CaptionFilter(having=("ZIB robot",), lacking=("city",))
    assert do(store, name, tag_edit("rename", "red hat, grey sky", "cap"), chosen) == 1
    assert captions(store, name)["2.png"] == "zib robot, cap"
    assert captions(store, name)["1.png"] == CAPTIONS["1.png"]
    assert store.undo(name) is not None
    assert captions(store, name)["2.png"] == CAPTIONS["2.png"]
    change = store.redo(name)
    assert change is not None
    assert change.title == "Merged 'red hat', 'grey sky' to 'cap'"
    assert captions(store, name)["2.png"] == "zib robot, cap"
    assert state(folder) == files


def test_pictures_are_chosen_and_put_in_order(store: DatasetStore, name: str) -> None:
    pictures = captioned_pictures(store, name)

    def names(chosen: CaptionFilter) -> list[str]:
        return [picture.name for picture in chosen.apply(pictures)]

    assert names(CaptionFilter()) == ["1.png", "2.png", "10.png", "sub/3.png"]
    assert names(CaptionFilter(order="fewest_tags")) == ["sub/3.png", "1.png", "10.png", "2.png"]
    assert names(CaptionFilter(order="longest")) == ["2.png", "10.png", "1.png", "sub/3.png"]
    assert names(CaptionFilter(lacking=("red hat",))) == ["10.png", "sub/3.png"]
    assert names(CaptionFilter(search=Search("gr[ae]y", is_regex=True))) == ["2.png", "10.png"]
    assert names(CaptionFilter(search=Search("Red", ignores_case=False))) == ["1.png"]
    assert names(CaptionFilter(uncaptioned=True)) == ["sub/3.png"]


# --- find and replace --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("search", "replacement", "before", "after"),
    [
        (Search("RED"), "blue", "a red hat", "a blue hat"),
        (Search("RED", ignores_case=False), "blue", "a red hat", "a red hat"),
        (Search("a.b"), r"\1", "a.b axb", r"\1 axb"),
        (Search("red"), "", "a, red, b, red", "a, b"),
        (Search(r"(\w+) hair", is_regex=True), r"hair of \1", "red hair, x", "hair of red, x"),
        (Search(r"(?<tone>dark|light) (?<name>\w+)", is_regex=True), r"\g<name>", "dark blue", "blue"),
        (Search("水墨"), "ink", "一幅水墨画", "一幅ink画"),
    ],
)
def test_replacing(search: Search, replacement: str, before: str, after: str) -> None:
    assert replace_text(search, replacement).change(before) == after


@pytest.mark.parametrize(
    ("pattern", "replacement", "place"),
    [("a(b", "", "character 4"), ("*a", "", "character 1"), ("(a)", r"\2", "group"), ("(a)", "x\\", "character 3")],
)
def test_wrong_expressions_are_refused_with_their_place(pattern: str, replacement: str, place: str) -> None:
    with pytest.raises(DatasetError, match=place):
        replace_text(Search(pattern, is_regex=True), replacement)


def test_an_expression_that_would_take_forever_is_stopped(
    store: DatasetStore, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.dataset.find_replace.SECONDS_A_CAPTION", 0.05)
    edit = replace_text(Search("(a|aa)+$", is_regex=True), "")
    with pytest.raises(DatasetError, match="takes too long"):
        edit.change("a" * 200 + "!")
    with pytest.raises(DatasetError, match="longer than 4000"):
        plan_edit(captioned_pictures(store, name), replace_text(Search("r"), "r" * 1500))


# --- several captions ----------------------------------------------------------------------------------------------


def test_several_captions_are_lines_in_the_record_as_in_files(store: DatasetStore, name: str, folder: Path) -> None:
    (folder / "1.txt").write_text("a robot\na red robot\n", encoding="utf-8")
    before = {facts.name: facts for facts in store.scan(name).usable}["1.png"]
    assert captions(store, name)["1.png"] == "a robot\na red robot"
    store.write_captions(name, {"1.png": ["a robot", " a  red robot", "a robot", ""]})
    after = {facts.name: facts for facts in store.scan(name).usable}["1.png"]
    # What is trained is the same, with and without data.several_captions, whether the file or the record says it.
    assert (after.caption, after.captions) == (before.caption, before.captions)
    assert after.captions == ("a robot", "a red robot")
    assert do(store, name, tag_edit("add", "night"), CaptionFilter(search=Search("red robot"))) == 1
    assert captions(store, name)["1.png"] == "a robot, night\na red robot, night"


# --- files -------------------------------------------------------------------------------------------------------


def test_export_writes_only_what_is_new_and_names_what_differs(
    store: DatasetStore, data: DataFolder, name: str, folder: Path
) -> None:
    do(store, name, tag_edit("remove", "lake"))
    store.write_captions(name, {"sub/3.png": ["a lake", "two lakes"]})
    before = state(folder)
    with pytest.raises(DatasetError, match="1 caption files") as caught:
        export_captions(store, data, name)
    assert [finding.where for finding in caught.value.findings] == ["10.txt"]
    assert "lake" in caught.value.findings[0].message
    assert state(folder) == before

    report = export_captions(store, data, name, overwrite=True)
    assert (report.num_written, report.num_same) == (2, 2)
    assert (folder / "10.txt").read_text(encoding="utf-8") == "gray sky, zib robot\n"
    assert (folder / "sub" / "3.txt").read_text(encoding="utf-8") == "a lake\ntwo lakes\n"
    assert report.backup is not None
    assert (report.backup / "10.txt").read_text(encoding="utf-8") == CAPTIONS["10.png"]
    again = export_captions(store, data, name)
    assert (again.num_written, again.num_same, again.backup) == (0, 4, None)


def test_pictures_that_share_a_caption_file_are_left_out_where_they_differ(
    store: DatasetStore, data: DataFolder, name: str, folder: Path
) -> None:
    zoo.good(folder / "1.jpg", None, seed=9)
    store.write_captions(name, {"1.jpg": ["other"]})
    before = state(folder)
    report = export_captions(store, data, name)
    assert sorted(finding.where for finding in report.left_out) == ["1.jpg", "1.png"]
    assert state(folder) == before


def test_three_that_share_a_caption_file_are_left_out_where_one_differs(
    store: DatasetStore, data: DataFolder, name: str, folder: Path
) -> None:
    for index, ending in enumerate(("jpg", "png", "webp")):
        zoo.good(folder / f"x.{ending}", None, seed=20 + index)
    store.write_captions(name, {"x.jpg": ["same"], "x.png": ["same"]})
    report = export_captions(store, data, name)
    assert sorted(finding.where for finding in report.left_out) == ["x.jpg", "x.png", "x.webp"]
    assert not (folder / "x.txt").exists()
    assert captions(store, name)["x.webp"] == ""


def test_files_say_the_captions_again_when_asked(store: DatasetStore, name: str, folder: Path) -> None:
    do(store, name, tag_edit("add", "night"))
    (folder / "2.txt").write_text("edited elsewhere", encoding="utf-8")
    assert captions(store, name)["2.png"].endswith("night")
    assert [item.name for item in caption_differences(store, name)] == ["1.png", "2.png", "10.png"]
    assert take_file_captions(store, name) == 3
    assert captions(store, name)["2.png"] == "edited elsewhere"
    assert captions(store, name)["sub/3.png"] == "night"
    store.undo(name)
    assert captions(store, name)["2.png"].endswith("night")


def test_captions_of_tables_are_edited_and_come_back_when_asked(
    store: DatasetStore, data: DataFolder, name: str, folder: Path
) -> None:
    (folder / "sub" / "metadata.jsonl").write_text('{"file_name": "3.png", "text": "from a table"}')
    assert captions(store, name)["sub/3.png"] == "from a table"
    store.write_captions(name, {"sub/3.png": []})
    assert captions(store, name)["sub/3.png"] == ""
    # Without a file, the table would say a caption to other programs.
    assert export_captions(store, data, name).num_written == 1
    assert (folder / "sub" / "3.txt").read_text() == ""
    (folder / "sub" / "3.txt").unlink()
    assert [(item.path.name, item.in_file) for item in caption_differences(store, name)] == [
        ("metadata.jsonl", ("from a table",))
    ]
    assert take_file_captions(store, name) == 1
    assert store.captions_of(name, "sub/3.png") == ("from a table",)


def test_bundled_sets_are_edited_in_the_record_alone(store: DatasetStore, data: DataFolder) -> None:
    bundled = next(info.name for info in store.list() if info.is_bundled)
    assert do(store, bundled, tag_edit("add", "night"))
    with pytest.raises(DatasetError, match="bundled"):
        export_captions(store, data, bundled)


# --- tokens ------------------------------------------------------------------------------------------------------

TEXTS = ["", "a red house, by the sea", "It's ZIB's 3rd robot!! (very:1.2) 水墨画 naïve\t\nx" * 9, "🙂 (a:1.1)"]


def test_tokens_are_those_of_the_embedded_models_tokenizer(data: DataFolder) -> None:
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(ASSETS / "models" / "inkwash-tiny" / "tokenizer", local_files_only=True)
    expected = [len(tokenizer(text, add_special_tokens=False).input_ids) for text in TEXTS]
    assert token_counter("", data).count(TEXTS) == expected
    assert token_counter("inkwash-tiny", data).count(TEXTS) == expected


@pytest.mark.parametrize("form", ["one file", "vocab and merges"])
def test_tokens_are_clips_own_for_models_in_other_forms(data: DataFolder, form: str) -> None:
    from trainer.models.clip_tokenizer import bundled_tokenizer

    tokenizer = bundled_tokenizer(ASSETS / "configs" / "sd1" / "tokenizer" / "tokenizer_config.json")
    base = data.models / "old"
    if form == "one file":
        base.mkdir(parents=True)
    else:
        (base / "tokenizer").mkdir(parents=True)
        merges = (ASSETS / "configs" / "clip_tokenizer" / "merges.txt").read_text(encoding="utf-8")
        (base / "tokenizer" / "merges.txt").write_text("#version: 0.2\n" + merges, encoding="utf-8")
        vocabulary = json.dumps(tokenizer.get_vocab(), ensure_ascii=False)
        (base / "tokenizer" / "vocab.json").write_text(vocabulary, encoding="utf-8")
    expected = [len(tokenizer(text, add_special_tokens=False).input_ids) for text in TEXTS]
    assert token_counter(str(base), data).count(TEXTS) == expected


def test_a_damaged_tokenizer_is_said(data: DataFolder) -> None:
    (data.models / "bad" / "tokenizer").mkdir(parents=True)
    (data.models / "bad" / "tokenizer" / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelFileError, match="tokenizer"):
        token_counter(str(data.models / "bad"), data)


def test_limits() -> None:
    assert [limit_of(tokens) for tokens in (0, 75, 76, 225, 226)] == [75, 75, 150, 225, None]
    assert TOKEN_LIMITS == (75, 150, 225)


# --- as the section asks ------------------------------------------------------------------------------------------


def test_a_page_has_rows_tags_and_tokens_of_what_the_filter_finds(data: DataFolder, name: str) -> None:
    service = CaptionService(data)
    query = CaptionQuery().on(name)
    page = service.page(name, query)
    assert (page.num_found, page.num_pictures, page.num_pages) == (4, 4, 1)
    assert [len(row.tokens) for row in page.rows] == [1, 1, 1, 0]
    assert page.rows[0].tokens[0] == service.tokens(CAPTIONS["1.png"] or "")[0] > 3

    picked = query.picked("Red hat")
    assert [row.picture.name for row in service.page(name, picked).rows] == ["1.png", "2.png"]
    without = picked.picked("red hat")
    assert [row.picture.name for row in service.page(name, without).rows] == ["10.png", "sub/3.png"]
    assert without.picked("red hat") == query
    assert [item.tag for item in service.page(name, CaptionQuery(tag_search="SKY")).tags] == ["gray sky", "grey sky"]
    assert service.page(name, CaptionQuery(page=7)).query.page == 0
    assert picked.on("another").having == ()


def test_pages_hold_every_picture_once_and_edits_reach_all_of_them(
    store: DatasetStore, data: DataFolder, tmp_path: Path
) -> None:
    (tmp_path / "many").mkdir()
    for index in range(ROWS + 2):
        zoo.good(tmp_path / "many" / f"{index}.png", "a, b", seed=index, size=(32, 32))
    name, service = store.link(tmp_path / "many").name, CaptionService(data)
    pages = [service.page(name, CaptionQuery(page=number)) for number in range(2)]
    assert [row.picture.name for page in pages for row in page.rows] == [f"{index}.png" for index in range(ROWS + 2)]
    edit = service.edit("rename", "a", "c")
    assert len(service.apply(name, CaptionQuery(having=("b",)), edit).changes) == ROWS + 2
    assert len(store.history(name)[0]) == 1


def test_saving_what_is_so_already_changes_nothing(store: DatasetStore, data: DataFolder, name: str) -> None:
    service = CaptionService(data)
    assert service.save(name, "1.png", f" {CAPTIONS['1.png']}\n\n") is None
    assert service.save(name, "1.png", "one\ntwo") == ("one", "two")
    assert store.history(name)[0][0].title == "Caption of 1.png"
    with pytest.raises(DatasetError):
        service.save(name, "../mine/1.txt", "x")


# --- command line --------------------------------------------------------------------------------------------------


def test_the_command_line_shows_first_and_changes_on_request(
    store: DatasetStore, data: DataFolder, name: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*words: str) -> dict:
        code = main(["dataset", *words, "--data-dir", str(data.root), "--json"])
        return {"code": code, **json.loads(capsys.readouterr().out.splitlines()[-1])}

    assert run("tags", name)["tags"][0] == {"tag": "zib robot", "pictures": 3}
    shown = run("tags", name, "rename", "grey sky, gray sky", "silver sky")
    assert (len(shown["changes"]), shown["applied"]) == (2, False)
    assert captions(store, name)["2.png"] == CAPTIONS["2.png"]
    run("tags", name, "rename", "grey sky, gray sky", "silver sky", "--having", "lake", "--apply")
    assert captions(store, name)["10.png"] == "silver sky, zib robot, lake"
    assert captions(store, name)["2.png"] == CAPTIONS["2.png"]
    run("tags", name, "--undo")
    assert captions(store, name)["10.png"] == CAPTIONS["10.png"]
    run("tags", name, "rename", "grey sky, gray sky", "silver sky", "--having", "lake", "--apply")
    run("replace", name, "(r)ed", r"\1ose", "--regex", "--match-case", "--apply")
    assert captions(store, name)["1.png"] == CAPTIONS["1.png"]
    assert captions(store, name)["2.png"] == "zib robot, rose hat, rose hat, grey sky"
    assert run("replace", name, "(", "", "--regex")["code"] != 0
    assert run("export-captions", name)["code"] != 0
    assert run("export-captions", name, "--overwrite")["replaced"] == ["2.png", "10.png"]
    (folder / "2.txt").write_text("by hand", encoding="utf-8")
    os.utime(folder / "2.txt")
    assert run("import-captions", name)["changed"] == 1
    assert captions(store, name)["2.png"] == "by hand"
