"""The gallery as its tab sees it: pages of small pictures, and what can be done with one. Knows no widgets."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from trainer.dataset.thumbnails import make_thumbnail
from trainer.errors import DatasetError
from trainer.found_recipe import FoundRecipe, read_any_recipe
from trainer.gallery import Gallery, PictureInfo, TrashedPicture
from trainer.paths import DataFolder

log = logging.getLogger(__name__)
PAGE = 40
_TILE = 320


@dataclass(frozen=True)
class GalleryPage:
    """A page of what was found."""

    pictures: tuple[PictureInfo, ...]
    page: int
    num_pages: int
    total: int


class GalleryService:
    """What the Gallery tab asks and does."""

    def __init__(self, data: DataFolder) -> None:
        self._data = data
        self.gallery = Gallery(data)

    def page(self, search: str, page: int) -> GalleryPage:
        """A page of the pictures that fit, newest first; the nearest one where there is no such page. Raises ConfigError."""
        found = self.gallery.pictures(search)
        num_pages = max(1, -(-len(found) // PAGE))
        page = max(0, min(page, num_pages - 1))
        return GalleryPage(tuple(found[page * PAGE : (page + 1) * PAGE]), page, num_pages, len(found))

    def tile(self, picture: PictureInfo) -> Path:
        """A small view; the picture itself where none can be made."""
        path = self.gallery.path(picture)
        try:
            return make_thumbnail(self._data, path, _TILE, picture.version)
        except DatasetError:
            log.info("No small view of %s", picture.name, exc_info=True)
            return path

    def recipe(self, picture: PictureInfo) -> FoundRecipe:
        """What is in it, fitted to this library. Raises ConfigError: nothing that can be read."""
        return read_any_recipe(self._data, self.gallery.path(picture))

    def last_deleted(self) -> TrashedPicture | None:
        """What an undo brings back."""
        return next(iter(self.gallery.trashed()), None)
