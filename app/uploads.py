"""Keeps the folders of what is dropped or chosen: a browser says where in them each file lies, and gradio passes only names on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from trainer.dataset.dropped import Dropped

KEEPS_FOLDERS = "keeps-folders"
"""Class of a gr.File that takes folders, too. An UploadButton for folders whose id is its id and `-folder` gives it what is chosen."""

HEAD = f"""<script>
{{
  // Gradio 6.31 takes a dropped folder for a file that cannot be read, and of a chosen one passes on files without their folders.
  // Here its own file input gets files whose names are paths: the server stores each under its last part, and the whole name
  // comes back as `orig_name`.
  const placeOf = event => event.target instanceof Element ? event.target.closest(".{KEEPS_FOLDERS}") : null;
  const isSeen = path => !path.split("/").some(part => part.startsWith("."));
  const give = (place, found) => {{
    const list = new DataTransfer();
    for (const [file, path] of found.filter(([, path]) => isSeen(path)))
      list.items.add(new File([file], path, {{type: file.type, lastModified: file.lastModified}}));
    if (!list.files.length) return alert("There are no files in this folder.");
    const input = place.querySelector("input[type=file]");
    input.files = list.files;
    input.dispatchEvent(new Event("change"));
  }};
  const asked = (object, method) => new Promise((done, failed) => object[method](done, failed));
  const walk = async (entry, found) => {{
    if (entry.isFile) found.push([await asked(entry, "file"), entry.fullPath.slice(1)]);
    else for (let reader = entry.createReader(), some; (some = await asked(reader, "readEntries")).length;)  // some at a time
      for (const inside of some) await walk(inside, found);
    return found;
  }};
  // Files that were dropped before lie in a list, which takes none.
  addEventListener("dragover", event => {{ if (placeOf(event)) event.preventDefault(); }}, true);
  addEventListener("drop", event => {{
    const place = placeOf(event);
    const entries = place ? [...event.dataTransfer.items].map(item => item.webkitGetAsEntry()).filter(Boolean) : [];
    if (!entries.some(entry => entry.isDirectory)) return;
    event.preventDefault();
    event.stopImmediatePropagation();
    // The area hears of the end of the dragging.
    event.target.dispatchEvent(new DragEvent("drop", {{bubbles: true, cancelable: true, dataTransfer: new DataTransfer()}}));
    Promise.all(entries.map(entry => walk(entry, []))).then(
      found => give(place, found.flat()), error => alert("This folder cannot be read: " + error.message));
  }}, true);
  addEventListener("change", event => {{
    const input = event.target;
    if (!(input instanceof HTMLInputElement && input.webkitdirectory)) return;
    const place = document.getElementById(input.nextElementSibling?.id.replace(/-folder$/, ""));
    if (!place?.matches(".{KEEPS_FOLDERS}")) return;
    event.stopImmediatePropagation();
    give(place, [...input.files].map(file => [file, file.webkitRelativePath]));
  }}, true);
}}
</script>"""
"""For the head of the page."""


def names_js(position: int) -> str:
    """A script for an event: the input after that at a position, which has the files, becomes their names as the browser has them."""
    return f"(...all) => [...all.slice(0, {position + 1}), (all[{position}] ?? []).map(file => file.orig_name)]"


def with_names(files: Sequence[str] | None, names: Sequence[str] | None) -> list[Dropped]:
    """The uploaded files with the names that `names_js` gave."""
    return [Dropped(Path(file), str(name)) for file, name in zip(files or (), names or (), strict=True)]
