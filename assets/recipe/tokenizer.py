"""Stage zero: a CLIPTokenizer of its own, byte-level, so that any text can be written down in it."""

from __future__ import annotations

import itertools
import json
import random
from collections import Counter
from pathlib import Path

from scenes import caption, specs
from transformers import CLIPTokenizer

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
MERGES = 900

# Words that people write in prompts.  The base model has not learned them, but each gets one or two tokens, which
# leaves a trigger word room to be learned.
WORDS = """
a an the of in on at by with and or near under over above below behind beside between from to into through for
is are it this that one two three many few small little big large tiny huge tall short long wide old new
style ink wash painting drawing picture sketch watercolor watercolour oil pencil pen brush line art print woodcut
blueprint papercut paper poster cartoon comic anime manga pixel photo photograph photographic portrait landscape
illustration render sculpture mosaic stained glass risograph vintage retro modern minimal abstract detailed simple
soft bright dark light warm cold pale vivid black white grey gray brown orange gold silver teal cyan magenta
pastel flat colour color colours colors monochrome high low quality best masterpiece beautiful pretty cute
robot fox dog bear rabbit horse bird owl dragon person man woman girl boy child face hand eye head character
sun moon star cloud sky rain snow fog mist wind river sea ocean beach island field garden road bridge city village
castle temple lighthouse church window door roof wall stone rock sand grass leaf leaves water fire smoke
morning evening noon night day sunset sunrise winter summer spring autumn season
standing sitting walking running flying floating sleeping looking smiling wearing holding view scene background
photo of a my our your his her its sks zib ohwx concept subject object thing toy figure front side close up
"""


def byte_characters() -> list[str]:
    """The printable character that byte-level BPE writes for each byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    spare = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(spare)) for byte in range(256)]


def corpus() -> Counter[str]:
    """The words that the merges are learned from, and how much each counts."""
    rng = random.Random(3)
    words: Counter[str] = Counter()
    for scene in specs(2000, 11, None):
        words.update(caption(scene, rng).replace(",", " ,").split())
    for word in WORDS.split():
        words[word] += 20
    words["pastel"] += 200
    words["style"] += 400
    return words


def learn_merges(words: Counter[str], count: int) -> list[tuple[str, str]]:
    """Plain byte-pair encoding; the text is small enough for the plain way."""
    split = {word: [*word[:-1], word[-1] + "</w>"] for word in words}
    merges: list[tuple[str, str]] = []
    while len(merges) < count:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, parts in split.items():
            for pair in itertools.pairwise(parts):
                pairs[pair] += words[word]
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        for parts in split.values():
            i = 0
            while i < len(parts) - 1:
                if (parts[i], parts[i + 1]) == best:
                    parts[i : i + 2] = ["".join(best)]
                i += 1
    return merges


def build_tokenizer(folder: Path) -> CLIPTokenizer:
    """Write the tokenizer's files, and read them back as every user will."""
    if not (folder / "vocab.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        merges = learn_merges(corpus(), MERGES)
        alphabet = byte_characters()
        entries = [*alphabet, *(c + "</w>" for c in alphabet), *dict.fromkeys(a + b for a, b in merges), BOS, EOS]
        vocab = {entry: i for i, entry in enumerate(dict.fromkeys(entries))}
        text = "#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges)
        (folder / "merges.txt").write_text(text, encoding="utf-8")
        (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
        CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=77).save_pretrained(folder)
        # The classic two files as well: older libraries and other programs read these.
        (folder / "merges.txt").write_text(text, encoding="utf-8")
        (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
    return CLIPTokenizer.from_pretrained(folder)
