"""Captions as lists of tags: reading them, counting them, and changing them over a whole data set.

A tag is what stands between two commas; a comma inside `{one, two|three}` belongs to a wildcard. Tags that differ in upper
and lower case only are one tag: the text encoders do not tell them apart.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from trainer.errors import DatasetError


@dataclass(frozen=True)
class TagCount:
    """A tag in its most frequent spelling, and in how many pictures' captions it stands."""

    tag: str
    pictures: int


@dataclass(frozen=True)
class CaptionEdit:
    """A change of captions. `title` says what it does; `change` takes one caption and gives it back, changed or not."""

    title: str
    change: Callable[[str], str]


def split_tags(caption: str) -> list[str]:
    """The tags of a caption in order, spaces tidied, empty ones left out."""
    if "{" not in caption:
        return [tag for part in caption.split(",") if (tag := " ".join(part.split()))]
    parts, depth, start = [], 0, 0
    is_balanced = caption.count("{") == caption.count("}")
    for index, char in enumerate(caption):
        if is_balanced and char in "{}":
            depth = max(0, depth + (1 if char == "{" else -1))
        elif char == "," and not depth:
            parts.append(caption[start:index])
            start = index + 1
    return [tag for part in (*parts, caption[start:]) if (tag := " ".join(part.split()))]


def join_tags(tags: Iterable[str]) -> str:
    """Tags as a caption."""
    return ", ".join(tags)


def tag_key(tag: str) -> str:
    """What two spellings of one tag have in common."""
    return " ".join(tag.split()).casefold()


def tag_keys(captions: Iterable[str]) -> frozenset[str]:
    """The tags of a picture's captions, by `tag_key`."""
    return frozenset(tag.casefold() for caption in captions for tag in split_tags(caption))


def count_tags(pictures: Iterable[Sequence[str]]) -> list[TagCount]:
    """How many pictures have each tag, the most frequent first; each picture is given by its captions."""
    own = [{tag for caption in captions for tag in split_tags(caption)} for captions in pictures]
    spelled = Counter(tag for tags in own for tag in tags)
    spellings: defaultdict[str, list[str]] = defaultdict(list)
    for tag in spelled:
        spellings[tag.casefold()].append(tag)
    found = []
    for key, variants in spellings.items():
        usual = max(variants, key=lambda tag: (spelled[tag], tag))
        # A picture with two spellings counts once.
        count = spelled[usual] if len(variants) == 1 else sum(1 for tags in own if not tags.isdisjoint(variants))
        found.append((-count, key, usual))
    return [TagCount(usual, -count) for count, _, usual in sorted(found)]


# --- edits -------------------------------------------------------------------------------------------------------


def add_tags(tags: Sequence[str], *, in_front: bool = False) -> CaptionEdit:
    """Add tags that a caption lacks, at its end or in front. Raises DatasetError: none are given."""
    added = _required(tags, "to add")

    def change(have: list[str]) -> list[str]:
        known = {tag.casefold() for tag in have}
        new = [tag for tag in added if tag.casefold() not in known]
        return [*new, *have] if in_front else [*have, *new]

    return CaptionEdit(f"Added {_named(added)}{' in front' if in_front else ''}", _on_tags(change))


def remove_tags(tags: Sequence[str]) -> CaptionEdit:
    """Take tags out. Raises DatasetError: none are given."""
    gone = _required(tags, "to remove")
    keys = {tag.casefold() for tag in gone}
    return CaptionEdit(
        f"Removed {_named(gone)}", _on_tags(lambda have: [tag for tag in have if tag.casefold() not in keys])
    )


def rename_tags(tags: Sequence[str], new: str) -> CaptionEdit:
    """Put one tag in the place of others; several that become one stand once, where the first of them was.

    Raises: DatasetError: no tags are given, or `new` is not one tag.
    """
    old = _required(tags, "to rename")
    names = split_tags(new)
    if len(names) != 1:
        raise DatasetError(
            "Tags are renamed to exactly one tag." if names else "The new name of the tag is missing.",
            where=new[:200],
            fix="Type one tag without commas; to take tags out, choose that instead.",
        )
    name = names[0]
    keys = {tag.casefold() for tag in old}

    def change(have: list[str]) -> list[str]:
        if keys.isdisjoint(tag.casefold() for tag in have):
            return have
        result, is_there = [], False
        for tag in have:
            if tag.casefold() in keys or tag.casefold() == name.casefold():
                if not is_there:
                    result.append(name)
                is_there = True
            else:
                result.append(tag)
        return result

    verb = "Renamed" if len(old) == 1 else "Merged"
    return CaptionEdit(f"{verb} {_named(old)} to '{name}'", _on_tags(change))


def move_to_front(tags: Sequence[str]) -> CaptionEdit:
    """Put tags first, in the order given, where a caption has them. Raises DatasetError: none are given."""
    first = _required(tags, "to move")
    place = {tag.casefold(): index for index, tag in enumerate(first)}
    return CaptionEdit(
        f"Moved {_named(first)} to the front",
        _on_tags(lambda have: sorted(have, key=lambda tag: place.get(tag.casefold(), len(place)))),
    )


def deduplicate_tags() -> CaptionEdit:
    """Keep the first of tags that stand several times in a caption."""

    def change(have: list[str]) -> list[str]:
        first: dict[str, str] = {}
        for tag in have:
            first.setdefault(tag.casefold(), tag)
        return list(first.values())

    return CaptionEdit("Removed repeated tags", _on_tags(change))


def sort_tags(stays_first: str = "") -> CaptionEdit:
    """Sort tags by their letters; `stays_first`, such as the trigger word, stays in front where a caption begins with it."""

    def change(have: list[str]) -> list[str]:
        num_kept = 1 if have and stays_first and have[0].casefold() == tag_key(stays_first) else 0
        return [*have[:num_kept], *sorted(have[num_kept:], key=str.casefold)]

    return CaptionEdit("Sorted the tags", _on_tags(change))


def _on_tags(change: Callable[[list[str]], list[str]]) -> Callable[[str], str]:
    def changed(caption: str) -> str:
        tags = split_tags(caption)
        after = change(list(tags))
        # A caption without anything to change keeps even its spaces.
        return caption if after == tags else join_tags(after)

    return changed


def _required(tags: Sequence[str], what: str) -> list[str]:
    found = [tag for text in tags for tag in split_tags(text)]
    if not found:
        raise DatasetError(f"There are no tags {what}.", fix="Type one or several, with commas between them.")
    return list({tag.casefold(): tag for tag in reversed(found)}.values())[::-1]


def _named(tags: Sequence[str]) -> str:
    shown = ", ".join(f"'{tag}'" for tag in tags[:3])
    return f"{shown} and {len(tags) - 3} more" if len(tags) > 3 else shown


ACTIONS = {
    "rename": "Rename, or merge into one",
    "remove": "Remove",
    "add": "Add at the end",
    "front": "Add in front",
    "first": "Move to the front",
    "unique": "Remove repeated tags",
    "sort": "Sort by letters",
}
"""What can be done with tags over a data set, by the word that asks for it."""


def tag_edit(action: str, tags: str, new: str = "", *, trigger_word: str = "") -> CaptionEdit:
    """The edit that an action of `ACTIONS` stands for.

    Args:
        action: what is to be done.
        tags: the tags that it is done to, with commas; of no use to `unique` and `sort`.
        new: of `rename`: the new name.
        trigger_word: stays in front when tags are sorted.

    Raises: DatasetError: the action is unknown, or its tags are missing.
    """
    match action:
        case "rename":
            return rename_tags([tags], new)
        case "remove":
            return remove_tags([tags])
        case "add" | "front":
            return add_tags([tags], in_front=action == "front")
        case "first":
            return move_to_front([tags])
        case "unique":
            return deduplicate_tags()
        case "sort":
            return sort_tags(trigger_word)
        case _:
            raise DatasetError(f"There is no change of tags '{action[:60]}'.", fix=f"Choose of {', '.join(ACTIONS)}.")
