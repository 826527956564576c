"""Captions from every captioner that needs no torch, the user's rules, and the job that puts them into a data set."""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.tiny_captioners import TAGGER_SIDE, make_tagger, pickled
from trainer.captioners import job as caption_job
from trainer.captioners.builtin import BuiltinCaptioner
from trainer.captioners.captioner import Description, Subject, Tag
from trainer.captioners.guides import CHARACTER_TAGS, STYLE_TAGS
from trainer.captioners.job import start_captioning
from trainer.captioners.models import NEEDS
from trainer.captioners.notes import Noted, Notes
from trainer.captioners.registry import CAPTIONERS, load_captioner
from trainer.captioners.server import ServerCaptioner, endpoint
from trainer.captioners.tagger import as_input, tag_text
from trainer.captioners.wording import Wording
from trainer.cli.main import main
from trainer.config.caption import NEEDS_MODEL, CaptionConfig
from trainer.config.fields import describe
from trainer.config.loading import build_caption_config
from trainer.dataset.store import DatasetStore
from trainer.errors import Cancelled, ConfigError, DatasetError, ModelFileError, ResourceError
from trainer.events import Failed, Finished, Stage, Warned
from trainer.jobs import JOBS, needs_device
from trainer.objects import load_object
from trainer.paths import DataFolder
from trainer.runs import Run, create_run
from trainer.worker import work

RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


def config(captioner: str = "builtin", **values: Any) -> CaptionConfig:
    return build_caption_config({"dataset": "set", "captioner": captioner, **values})


def picture(colour: tuple[int, int, int], size: tuple[int, int] = (60, 60)) -> Subject:
    return Subject("sea/red_boat-03.png", Image.new("RGB", size, colour))


def tags(*texts: str) -> Description:
    return Description(tuple(Tag(text, 1 - index / 100) for index, text in enumerate(texts)))


def no_stop() -> None:
    pass


# --- settings -----------------------------------------------------------------------------------------------------------


def test_every_captioner_is_there_and_every_setting_is_explained() -> None:
    kinds = next(spec for spec in describe(CaptionConfig) if spec.path == "captioner")
    assert list(kinds.choices) == list(CAPTIONERS)
    assert set(NEEDS) == set(NEEDS_MODEL)
    assert all(callable(load_object(CAPTIONERS[name].implementation)) for name in ("builtin", "tagger", "server"))
    assert all(spec.help for spec in describe(CaptionConfig))


@pytest.mark.parametrize(
    ("values", "where", "words"),
    [
        ({"captioner": "tagger"}, "model", "is needed"),
        ({"model": "x"}, "model", "no model"),
        ({"tagger": {"general_threshold": 0.5}}, "tagger.general_threshold", "choose tagger"),
        ({"captioner": "server", "tags": {"max_tags": 3}}, "tags.max_tags", "choose builtin or tagger"),
        ({"wording": {"template": "no place"}}, "wording.template", "{caption}"),
        ({"wording": {"template": "{caption} {other}"}}, "wording.template", "{caption}"),
        ({"wording": {"replacements": ["a"]}}, "wording.replacements", "OLD=NEW"),
        ({"captioner": "server", "server": {"address": "file:///etc/passwd"}}, "server.address", "pattern"),
    ],
)
def test_settings_that_would_do_nothing_or_harm_are_refused_at_their_field(
    values: dict[str, Any], where: str, words: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        config(**{"captioner": "builtin", **values})
    assert [finding.where for finding in caught.value.findings] == [where]
    assert words in caught.value.findings[0].message


# --- rules --------------------------------------------------------------------------------------------------------------


def caption(description: Description, before: str = "", trigger: str = "zsy", **wording: Any) -> str:
    rest = {name: wording.pop(name) for name in ("existing", "tags", "captioner") if name in wording}
    return Wording(config(wording=wording, **rest), trigger).caption(description, "sea side/red_boat-03.png", before)


def test_tags_are_left_out_replaced_sorted_and_cut() -> None:
    said = tags("boat", "sea", "Solo", "grey background", "sky")
    assert caption(said) == "boat, sea, Solo, grey background, sky"
    rules = {"blacklist": ["solo", "*background"], "replacements": ["SEA=ocean", "sky="]}
    assert caption(said, **rules) == "boat, ocean"
    assert caption(said, tags={"max_tags": 2, "order": "alphabet"}) == "boat, sea"
    assert caption(tags("sea", "boat"), tags={"order": "alphabet"}) == "boat, sea"
    assert caption(tags("boat", "ship"), replacements=["ship=boat"]) == "boat", "what becomes equal stands once"
    assert caption(tags("solo"), blacklist=["solo"], prefix="p") == "", "nothing is said where nothing is left"


def test_sentences_lose_whole_words_only() -> None:
    said = Description(text="a red boat, a boathouse and a man")
    assert caption(said, blacklist=["red"], replacements=["boat=ship"]) == "a ship, a boathouse and a man"


def test_template_prefix_suffix_and_trigger() -> None:
    rules = {"template": "{name} in {folder}: {caption}", "prefix": "start", "suffix": "end", "insert_trigger": True}
    assert caption(tags("boat"), **rules) == "zsy, start, red boat in sea side: boat, end"
    assert caption(tags("zsy boat"), insert_trigger=True) == "zsy boat", "the trigger word is not written twice"
    assert caption(Description(text="a {name}")) == "a {name}", "what a captioner says is no template"


def test_appending_adds_only_what_is_new() -> None:
    append = {"existing": "append"}
    assert caption(tags("Boat", "sea"), "zsy, boat", **append) == "zsy, boat, sea"
    assert caption(tags("boat"), "boat", **append) == "boat"
    assert caption(tags("boat"), "", **append) == "boat"
    assert caption(tags("boat"), "sea\nboat at sea, boat", **append) == "sea, boat\nboat at sea, boat"
    append["insert_trigger"] = True
    assert caption(tags("boat"), "a sea view", **append) == "zsy, a sea view, boat"
    assert caption(tags("boat"), "a photo of zsy\nsea", **append) == "a photo of zsy, boat\nzsy, sea, boat"
    assert caption(tags("boat"), "a photo of zsy", **append, template="{trigger}, {caption}") == "a photo of zsy, boat"


@pytest.mark.parametrize(
    ("guide", "text", "expected"),
    [
        ("character", "a woman with long brown hair and blue eyes standing in a park", "a woman standing in a park"),
        ("character", "A girl with pink hair, holding a sword.", "A girl, holding a sword."),
        ("character", "a man with a beard and a hat", "a man with a hat"),
        ("character", "a cat on a chair near bears", "a cat on a chair near bears"),
        ("style", "a watercolor painting of a cat on a roof", "a cat on a roof"),
        ("style", "a black and white drawing of a house, in the style of Monet.", "a house."),
        ("style", "a boat on a lake, painted with ink and a brush, at night", "a boat on a lake, at night"),
        ("none", "a watercolor painting of a woman with red hair", "a watercolor painting of a woman with red hair"),
    ],
)
def test_guides_leave_out_of_sentences_what_is_to_be_learned(guide: str, text: str, expected: str) -> None:
    assert caption(Description(text=text), guide=guide) == expected


def test_guides_leave_out_tags_of_what_is_to_be_learned_and_keep_the_rest() -> None:
    said = tags("1girl", "long hair", "closed eyes", "blue eyes", "chair", "drawing", "monochrome", "cat ears", "hat")
    assert caption(said, guide="character") == "1girl, closed eyes, chair, drawing, monochrome, hat"
    assert caption(said, guide="style") == "1girl, long hair, closed eyes, blue eyes, chair, cat ears, hat"
    named = Description((Tag("some hero", 1.0, is_name=True), Tag("sword", 0.9)))
    assert caption(named, guide="character") == "sword"
    assert caption(named, guide="style") == "some hero, sword"
    assert all(pattern == pattern.casefold() for pattern in (*STYLE_TAGS, *CHARACTER_TAGS)), "they are compared so"


# --- built-in -----------------------------------------------------------------------------------------------------------


def test_the_builtin_one_says_names_shape_background_and_colours() -> None:
    image = Image.new("RGB", (120, 80), WHITE)
    image.paste((20, 40, 200), (30, 15, 95, 65))
    said = [tag.text for tag in BuiltinCaptioner().describe(Subject("sea/red_boat-03.png", image)).tags]
    assert said[:5] == ["red boat", "sea", "wide picture", "white background", "simple background"]
    assert said[-2:] == ["white colours", "blue colours"], "by the share that they cover"
    grey = [tag.text for tag in BuiltinCaptioner().describe(Subject("1.png", Image.new("RGB", (40, 80), "grey"))).tags]
    assert grey == ["tall picture", "grey background", "simple background", "monochrome"]


@pytest.mark.parametrize("colour", ["red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink", "brown"])
def test_colours_have_the_names_that_css_gives_them(colour: str) -> None:
    said = [tag.text for tag in BuiltinCaptioner().describe(Subject("1.png", Image.new("RGB", (40, 40), colour))).tags]
    assert f"{colour} colours" in said


# --- tagger -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tagger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tagger(tmp_path_factory.mktemp("tagger") / "model")


def test_a_tagger_reads_bgr_and_its_thresholds_ratings_and_names(tagger: Path) -> None:
    loaded = load_captioner(config("tagger", model=str(tagger)), no_stop)
    red = {tag.text: (round(tag.score, 3), tag.is_name) for tag in loaded.describe(picture(RED)).tags}
    assert red == {"red hair": (1.0, False), "^_^": (0.9, False), "robot zib": (0.95, True)}
    assert [tag.text for tag in loaded.describe(picture(BLUE)).tags] == ["blue sky"]
    # Half as high as wide: half of the white square is left, and all channels are seen in it.
    half = {tag.text: round(tag.score, 2) for tag in loaded.describe(picture(BLUE, (64, 32))).tags}
    assert half == {"blue sky": 1.0, "grass (plant)": 0.5, "red hair": 0.5, "^_^": 0.45}
    strict = {"general_threshold": 0.92, "character_threshold": 0.99}
    only = load_captioner(config("tagger", model=str(tagger), tagger=strict), no_stop).describe(picture(RED))
    assert [tag.text for tag in only.tags] == ["red hair"]


def test_a_tagger_is_fed_the_picture_in_the_middle_of_a_white_square() -> None:
    fed = as_input(Image.new("RGB", (32, 16), RED), TAGGER_SIDE)
    assert (fed.shape, fed.dtype) == ((32, 32, 3), np.float32)
    assert fed[16, 16].tolist() == [0, 0, 255]
    assert fed[0, 16].tolist() == fed[-1, 16].tolist() == [255, 255, 255]


def test_tags_are_written_with_blanks_and_brackets_as_wanted() -> None:
    assert [tag_text(name) for name in ("long_hair", "grass_(plant)", "^_^")] == ["long hair", "grass (plant)", "^_^"]
    assert tag_text("grass_(plant)", escape=True) == r"grass \(plant\)"


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: (folder / "selected_tags.csv").unlink(), "lacks selected_tags.csv"),
        (lambda folder: (folder / "selected_tags.csv").write_text("a,b\n1,2\n"), "list of tags cannot be read"),
        (lambda folder: (folder / "selected_tags.csv").write_text("name,category\nx,0\n"), "has 1 tags"),
        (lambda folder: (folder / "model.onnx").write_bytes(b"not a model"), "cannot be loaded"),
    ],
)
def test_a_spoilt_tagger_is_a_sentence(tmp_path: Path, spoil: Callable[[Path], Any], words: str) -> None:
    folder = make_tagger(tmp_path / "model")
    spoil(folder)
    with pytest.raises(ModelFileError, match=words):
        load_captioner(config("tagger", model=str(folder)), no_stop).describe(picture(RED))


def test_a_model_that_is_not_here_or_a_pickle_is_refused_before_anything_starts(tmp_path: Path) -> None:
    data = DataFolder(tmp_path / "data")
    make_set(data)
    with pytest.raises(ModelFileError, match="not in the Hugging Face cache") as caught:
        start_captioning(data, config("tagger", model="owner/none"))
    assert "inkwash model download owner/none --for tagger" in caught.value.fix
    folder = tmp_path / "blip"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "blip"}')
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(ModelFileError, match=r"no \.safetensors weights"):
        start_captioning(data, config("blip", model=str(pickled(folder))))
    assert not data.runs.exists()


# --- server -------------------------------------------------------------------------------------------------------------


class Server:
    """Answers as chat servers do: `answers` are (status, body) in their order, the last one again and again."""

    def __init__(self) -> None:
        self.answers: list[tuple[int, Any]] = []
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.models = ["only-one"]
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._send(200, {"data": [{"id": name} for name in outer.models]})

            def do_POST(self) -> None:
                assert self.path == "/v1/chat/completions"
                outer.keys.append(self.headers.get("Authorization"))
                outer.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                status, body = outer.answers[0] if len(outer.answers) == 1 else outer.answers.pop(0)
                self._send(status, body)

            def _send(self, status: int, body: Any) -> None:
                data = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.send_header("Location", "http://192.0.2.1/elsewhere")
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def settings(self, **values: Any) -> CaptionConfig:
        return config("server", server={"address": self.address, "retries": 1, **values.pop("server", {})}, **values)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr("trainer.captioners.server._PAUSE_SECONDS", 0.0)
    running = Server()
    yield running
    running.server.shutdown()


def said(text: Any) -> tuple[int, Any]:
    return 200, {"choices": [{"message": {"content": text}}]}


def test_a_server_is_shown_the_picture_and_asked_for_what_shall_be_learned(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INKWASH_CAPTION_KEY", "secret")
    server.answers = [said("<think>hm</think> A red square.")]
    captioner = load_captioner(server.settings(wording={"guide": "style"}, server={"max_side": 64}), no_stop)
    assert captioner.describe(picture(RED, (300, 150))).text == "A red square."
    asked = server.asked[0]
    text, shown = asked["messages"][0]["content"]
    assert (asked["model"], asked["temperature"], asked["stream"]) == ("only-one", 0, False)
    assert "Do not mention that it is a painting" in text["text"]
    head, _, encoded = shown["image_url"]["url"].partition(",")
    image = Image.open(io.BytesIO(base64.b64decode(encoded)))
    assert (head, image.size) == ("data:image/jpeg;base64", (64, 32))
    assert server.keys == ["Bearer secret"]
    server.models = ["one", "two"]
    with pytest.raises(ResourceError) as caught:
        load_captioner(server.settings(), no_stop)
    assert "one, two" in caught.value.fix
    own = load_captioner(server.settings(model="two", server={"prompt": "Just the colour."}), no_stop)
    own.describe(picture(RED))
    assert server.asked[-1]["model"] == "two"
    assert server.asked[-1]["messages"][0]["content"][0]["text"] == "Just the colour."


def test_a_busy_server_is_asked_again_and_a_refusal_is_told_as_it_is(server: Server) -> None:
    captioner = load_captioner(server.settings(), no_stop)
    server.answers = [(503, "busy"), said("a boat")]
    assert captioner.describe(picture(RED)).text == "a boat"
    for answer, words in (
        ((400, {"error": "no pictures, please"}), "refused .400.*no pictures, please"),
        ((302, ""), "refused .302"),
        ((503, "busy"), "refused .503"),
        ((200, b"<html>"), "something else than JSON"),
        ((200, {"choices": []}), "another form"),
        ((200, b" " * 1_100_000), "without end"),
    ):
        server.answers = [answer]
        before = len(server.asked)
        with pytest.raises(ResourceError, match=words):
            captioner.describe(picture(RED))
        assert len(server.asked) - before == (2 if answer[0] == 503 else 1)
    gone = config("server", model="x", server={"address": "http://127.0.0.1:9/v1", "retries": 0})
    with pytest.raises(ResourceError, match="cannot be reached"):
        load_captioner(gone, no_stop).describe(picture(RED))


def test_addresses_are_taken_as_people_write_them() -> None:
    full = "http://localhost:1234/v1"
    assert [endpoint(f"http://localhost:1234{end}") for end in ("", "/", "/v1", "/v1/chat/completions")] == [full] * 4
    assert endpoint("http://host/api/v3") == "http://host/api/v3"


# --- the job ------------------------------------------------------------------------------------------------------------


def make_set(data: DataFolder, number: int = 4, captioned: int = 1) -> DatasetStore:
    store = DatasetStore(data)
    store.create("set", trigger_word="zsy")
    source = data.root / "source"
    source.mkdir()
    for index in range(number):
        colour = (int(255 * index / number), 30, 200)
        Image.new("RGB", (64, 48), colour).save(source / f"boat {chr(97 + index)}.png")
    store.add_files("set", [source])
    names = [facts.name for facts in store.scan("set").pictures]
    if captioned:
        store.set_captions("set", {name: "by hand" for name in names[:captioned]})
    return store


def run_job(data: DataFolder, captioner: str = "builtin", **values: Any) -> Run:
    run = create_run(data, "caption", "test", config(captioner, **values).model_dump(mode="json"))
    run.enqueue()
    work(run)
    return run


def captions(store: DatasetStore) -> dict[str, str | None]:
    return {Path(facts.name).stem: facts.caption for facts in store.scan("set").pictures}


def test_a_captioning_is_one_change_that_undo_takes_back(tmp_path: Path) -> None:
    data = DataFolder(tmp_path / "data")
    store = make_set(data)
    before = captions(store)
    changes = len(store.history("set")[0])
    run = run_job(data)
    final = run.final_event()
    assert isinstance(final, Finished), final
    assert (final.result["captioned"], final.result["summary"]) == (3, "3 pictures captioned")
    after = captions(store)
    assert after["boat a"] == "by hand"
    assert str(after["boat b"]).startswith("boat b, wide picture")
    assert [change.title for change in store.history("set")[0][changes:]] == ["Captioned 3 pictures (Built-in)"]
    stages = [event for event in run.events() if isinstance(event, Stage) and event.total]
    assert (stages[-1].done, stages[-1].total) == (3, 3)
    store.undo("set")
    assert captions(store) == before
    run_job(data, existing="overwrite", wording={"insert_trigger": True})
    assert str(captions(store)["boat a"]).startswith("zsy, boat a, ")
    store.undo("set")
    run_job(data, existing="append", tags={"max_tags": 1})
    assert captions(store)["boat a"] == "by hand, boat a"


def test_a_preview_changes_nothing(tmp_path: Path) -> None:
    data = DataFolder(tmp_path / "data")
    store = make_set(data, number=6, captioned=0)
    before, changes = captions(store), len(store.history("set")[0])
    final = run_job(data, preview=3).final_event()
    assert isinstance(final, Finished)
    shown = [Path(entry["picture"]).stem for entry in final.result["captions"]]
    assert shown == ["boat a", "boat c", "boat e"], "spread over the set"
    assert all(entry["caption"] for entry in final.result["captions"])
    assert (captions(store), len(store.history("set")[0])) == (before, changes)


class Failing(BuiltinCaptioner):
    """Fails at the pictures with these letters, with what is told it."""

    def __init__(self, at: str, error: BaseException) -> None:
        self.at, self.error = at, error
        self.seen: list[str] = []

    def describe(self, subject: Subject) -> Description:
        if Path(subject.name).stem[-1] in self.at:
            raise self.error
        self.seen.append(Path(subject.name).stem)
        return super().describe(subject)


def test_what_is_captioned_stays_when_it_fails_or_stops_and_a_resumed_run_does_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = DataFolder(tmp_path / "data")
    store = make_set(data, number=6, captioned=0)
    failing = Failing("cde", ResourceError("the server is gone"))
    monkeypatch.setattr(caption_job, "load_captioner", lambda *_: failing)
    run = run_job(data)
    assert isinstance(run.final_event(), Failed)
    assert [name for name, text in captions(store).items() if text] == ["boat a", "boat b"]
    store.set_captions("set", {next(f.name for f in store.scan("set").pictures): "mine"})
    failing.at = "d"
    failing.error = Cancelled("stop")
    run.enqueue()
    work(run)
    assert [name for name, text in captions(store).items() if text] == ["boat a", "boat b", "boat c", "boat f"]
    failing.at = ""
    run.enqueue()
    work(run)
    assert [name[-1] for name in failing.seen] == list("abfcde"), (
        "no picture is looked at twice, what failed comes last"
    )
    assert captions(store)["boat a"] == "mine", "and what was written meanwhile is not undone"
    assert all(captions(store).values())


def test_pictures_that_cannot_be_captioned_do_not_keep_the_others_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = DataFolder(tmp_path / "data")
    store = make_set(data, number=7, captioned=0)
    failing = Failing("bcf", ResourceError("refused (400)"))
    monkeypatch.setattr(caption_job, "load_captioner", lambda *_: failing)
    run = run_job(data)
    final = run.final_event()
    assert isinstance(final, Finished)
    assert (final.result["captioned"], final.result["failed"]) == (4, 3)
    assert final.result["summary"] == "4 pictures captioned, 3 could not be captioned"
    told = [event.message for event in run.events() if isinstance(event, Warned)]
    assert told == [f"boat {letter}.png is passed over: refused (400)" for letter in "bcf"]
    # Three in a row end it, whatever they raise; and those do not end it again.
    failing.at, failing.error = "abc", RuntimeError("odd picture")
    run = run_job(data, existing="overwrite")
    assert isinstance(run.final_event(), Failed)
    run.enqueue()
    work(run)
    final = run.final_event()
    assert isinstance(final, Finished)
    assert (final.result["captioned"], final.result["failed"]) == (4, 3)
    failing.at = "abcdefg"
    assert isinstance(run_job(data, existing="overwrite", preview=2).final_event(), Failed), "where none can be"
    assert str(captions(store)["boat g"]).startswith("boat g")


def test_after_a_power_cut_what_was_noted_is_kept_but_not_over_the_users_words(tmp_path: Path) -> None:
    data = DataFolder(tmp_path / "data")
    store = make_set(data, captioned=0)
    names = [facts.name for facts in store.scan("set").pictures]
    run = create_run(data, "caption", "test", config().model_dump(mode="json"))
    notes = Notes(run.folder)
    notes.add(Noted(names[0], "", "from before"))
    notes.add(Noted(names[1], "", "lost to the user"))
    with (run.folder / "captions.jsonl").open("a") as file:
        file.write('\n{"picture": "boat c.png", "bef')
    store.set_captions("set", {names[1]: "typed meanwhile"})
    run.enqueue()
    work(run)
    now = captions(store)
    assert (now["boat a"], now["boat b"]) == ("from before", "typed meanwhile")
    assert str(now["boat c"]).startswith("boat c, ")
    told = [event.message for event in run.events() if isinstance(event, Warned)]
    assert told == ["1 pictures were changed by hand in the meantime, and stay as they are."]


def test_only_models_wait_for_the_device(tmp_path: Path) -> None:
    data = DataFolder(tmp_path / "data")
    runs = {name: create_run(data, "caption", name, {"captioner": name}) for name in CAPTIONERS}
    assert [name for name, run in runs.items() if needs_device(run)] == ["tagger", "blip", "florence2"]
    assert JOBS["caption"].is_resumable
    assert not JOBS["caption"].has_steps


def test_what_has_nothing_to_caption_is_refused(tmp_path: Path) -> None:
    data = DataFolder(tmp_path / "data")
    make_set(data, number=2, captioned=2)
    with pytest.raises(DatasetError, match="nothing to caption"):
        start_captioning(data, config())


def test_the_command_captions_a_plain_folder_without_touching_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], tagger: Path
) -> None:
    folder = tmp_path / "my pictures"
    folder.mkdir()
    Image.new("RGB", (64, 64), RED).save(folder / "one.png")
    words = ["--with", "tagger", "--model", str(tagger), "--wording.guide", "character", "--wording.prefix", "zib"]
    code = main(["caption", str(folder), *words, "--json", "--data-dir", str(tmp_path / "data")])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (code, result["captioned"], result["dataset"]) == (0, 1, "my pictures")
    assert result["captions"] == [{"picture": "one.png", "before": "", "caption": "zib, ^_^"}]
    assert [path.name for path in folder.iterdir()] == ["one.png"]
    assert DatasetStore(DataFolder(tmp_path / "data")).caption_of("my pictures", "one.png") == "zib, ^_^"


def test_a_servers_stop_is_heard_while_it_waits() -> None:
    def stop() -> None:
        raise Cancelled("now")

    settings = config("server", model="x", server={"address": "http://127.0.0.1:9"})
    with pytest.raises(Cancelled):
        ServerCaptioner(settings.server, "x", "none", stop).describe(picture(RED))
