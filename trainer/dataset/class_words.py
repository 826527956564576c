"""What class pictures show, as their data set's record says it: the prompt of prior preservation where the settings have none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trainer.dataset.catalog import DatasetCatalog, DatasetInfo
from trainer.errors import DatasetError


def class_words(info: DatasetInfo) -> str:
    """What the pictures of a data set of class pictures show; empty where it says nothing of it."""
    return info.instance_prompt or info.class_prompt


def with_class_words(settings: Mapping[str, Any], catalog: DatasetCatalog) -> dict[str, Any]:
    """Settings of a run with `data.prior.class_prompt` as the data set `data.prior.dataset` says it, where they leave it empty.

    What is wrong with the settings stays as it is: it is said when they are checked.
    """
    data = settings.get("data")
    prior = data.get("prior") if isinstance(data, Mapping) else None
    if not isinstance(data, Mapping) or not isinstance(prior, Mapping):
        return dict(settings)
    name = prior.get("dataset")
    if prior.get("class_prompt") or not name or not isinstance(name, str):
        return dict(settings)
    try:
        words = class_words(catalog.get(name))
    except DatasetError:
        return dict(settings)
    return {**settings, "data": {**data, "prior": {**prior, "class_prompt": words}}}
