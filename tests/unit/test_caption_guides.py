"""What the guides take out of sentences as captioning models write them, and that the rest stays whole."""

from __future__ import annotations

import time

import pytest

from trainer.captioners.captioner import Description
from trainer.captioners.wording import Wording
from trainer.config.loading import build_caption_config


def guided(guide: str, text: str) -> str:
    config = build_caption_config({"dataset": "set", "captioner": "builtin", "wording": {"guide": guide}})
    return Wording(config).caption(Description(text=text), "a.png")


@pytest.mark.parametrize(
    "text",
    [
        "a girl with closed eyes sitting on a bench.",
        "A boy with his eyes closed, smiling.",
        "A woman covering her ears with both hands, standing in the rain.",
        "a man holding a horn, playing music",
        "a man with a horn",
        "She is brushing her hair in front of a mirror.",
        "a woman washing her face and hair",
        "A girl looks at the viewer with one eye closed and her hair blowing in the wind",
        "a woman with long hair blowing in the wind",
        "a woman with blonde hair in a ponytail",
        "a girl with hair covering her eyes",
        "A woman with brown hair, eyes closed, is singing.",
        "a dog with its tail between its legs",
        "a dragon with wings spread",
        "a cat wearing cat ears headband",
        "a person in a hoodie with cat ears",
        "a warrior wearing a helmet with horns and a fur cape",
        "a plate with wings and fries",
        "a person covered with brown fur",
        "a boy playing with long hair",
        "Her long hair is blowing in the wind.",
        "Her eyes are red and she smiles.",
        "a girl has long hair blowing in the wind",
        "A girl with red hair, and the sun shines behind her.",
        "Two children, one with blonde hair and one with brown hair, play in the sand.",
    ],
)
def test_poses_expressions_and_what_is_held_or_worn_stay(text: str) -> None:
    assert guided("character", text) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("an anime girl with long blue hair and red eyes holding a sword", "an anime girl holding a sword"),
        ("a cat with blue eyes and a red collar sitting on a sofa", "a cat with a red collar sitting on a sofa"),
        ("two girls with short hair and glasses are sitting", "two girls with glasses are sitting"),
        ("a woman with long hair and sunglasses on her head", "a woman with sunglasses on her head"),
        ("a girl with red hair and her hands on her hips", "a girl with her hands on her hips"),
        ("a girl with blue eyes and wings spread", "a girl with wings spread"),
        ("a girl with long hair and eyes closed", "a girl with eyes closed"),
        ("a cat with white fur and its eyes closed", "a cat with its eyes closed"),
        ("a girl with long hair and wearing a hat", "a girl wearing a hat"),
        ("a man with a beard and a woman with red hair", "a man and a woman"),
        ("a girl with long hair, blue eyes, and a red dress", "a girl with a red dress"),
        ("A man with short brown hair, glasses, and a beard.", "A man with glasses, and a beard."),
        ("anime girl, long hair, blue eyes, sitting on a bench", "anime girl, sitting on a bench"),
        ("A girl, with long red hair, stands in a garden.", "A girl stands in a garden."),
        ("With long hair and blue eyes, the girl stands on a bridge.", "The girl stands on a bridge."),
        ("a woman in a black dress and long blonde hair standing", "a woman in a black dress standing"),
        ("A woman whose hair is long and red holds a lamp.", "A woman holds a lamp."),
        ("there is a woman that has long hair and is smiling", "there is a woman that is smiling"),
        ("A girl has red hair.", "A girl."),
        ("She has long hair. She smiles.", "She smiles."),
        ("She has long blonde hair and blue eyes, and she is wearing a shirt.", "She is wearing a shirt."),
        ("The man has a white beard, and is holding a staff.", "The man is holding a staff."),
        ("The elf has white hair, a scarf, and a sword.", "The elf has a scarf, and a sword."),
        ("Her hair is long and blonde, and her eyes are closed.", "Her eyes are closed."),
        ("The girl's hair is tied back, and her eyes are green.", "The girl's hair is tied back."),
        (
            "The image shows a young woman with long, wavy brown hair and green eyes. She is wearing a white dress.",
            "The image shows a young woman. She is wearing a white dress.",
        ),
    ],
)
def test_what_a_character_always_is_goes_and_the_sentence_stays_whole(text: str, expected: str) -> None:
    assert guided("character", text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "a room with a painting of a ship on the wall",
        "a painting of a ship on the wall of a room",
        "A picture of a cat hangs on the wall.",
        "a lunch made with eggs, on a table",
        "a cake made using flour",
        "a salad made with oil, on a plate",
        "a soap made with oils",
        "a wall painted with graffiti of a face",
        "a woman with her lips painted with red paint",
        "a cart drawn by two horses",
        "a girl drawing a picture of a horse",
        "a woman painting a picture of a tree",
        "a woman in black and white dress",
        "a man dressed in black and white, on a stage",
        "a letter written in ink",
        "a woman in a victorian style dress",
        "a kitchen in a rustic style",
        "The girl is drawn in an anime style.",
    ],
)
def test_pictures_in_the_picture_and_what_things_are_made_of_stay(text: str) -> None:
    assert guided("style", text) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a photo of a man taking a picture of a dog", "a man taking a picture of a dog"),
        ("a photo of a painting of a dog", "a painting of a dog"),
        ("a pencil sketch of a girl with a painting of a cat", "a girl with a painting of a cat"),
        ("a digital painting of a woman standing on a cliff", "a woman standing on a cliff"),
        ("The image shows a digital illustration of a fox in a forest.", "A fox in a forest."),
        ("This is a black and white photograph of a street.", "A street."),
        ("A vibrant, colorful illustration of a parrot on a branch.", "A parrot on a branch."),
        ("an anime illustration featuring a girl holding a sword", "a girl holding a sword"),
        ("In this image we can see a dog on a sofa.", "A dog on a sofa."),
        ("The image shows a house in the style of van gogh, in watercolor", "A house"),
        ("a man in the style of Monet holding a cat", "a man holding a cat"),
        ("a cat drawn in the style of a comic book, on a sofa", "a cat, on a sofa"),
        ("a dragon in an oil painting style, over a lake", "a dragon, over a lake"),
        ("A close-up photo of a flower, rendered in soft pastels.", "A flower."),
        ("a dog, painted in watercolor, on a white background", "a dog, on a white background"),
        ("a city street at night in black and white", "a city street at night"),
    ],
)
def test_the_medium_goes_and_all_that_is_shown_stays(text: str, expected: str) -> None:
    assert guided("style", text) == expected


@pytest.mark.parametrize("text", ["a girl with " + "long " * 400, "with long hair and " * 200, "a red hat, " * 300])
def test_no_sentence_takes_long(text: str) -> None:
    began = time.monotonic()
    guided("character", text)
    guided("style", text)
    assert time.monotonic() - began < 10
