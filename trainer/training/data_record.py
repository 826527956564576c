"""Writing down what a run is trained on, so that any of its data sets can be looked at and brought back later."""

from __future__ import annotations

from collections.abc import Sequence

from trainer.config.run import RunConfig
from trainer.data.examples import Concept
from trainer.dataset.catalog import DatasetCatalog
from trainer.dataset.versions import FILE_NAME, read_versions, version_of, write_versions
from trainer.paths import DataFolder
from trainer.runs import Run


def record_datasets(run: Run, config: RunConfig, data: DataFolder, concepts: Sequence[Concept]) -> None:
    """Write the exact state of the run's data sets into its folder; a run that goes on keeps what it began with.

    Raises: DatasetError: class pictures of the user's own cannot be found. ResourceError: the disk is full.
    """
    if (run.folder / FILE_NAME).exists() and run.checkpoints.is_dir() and any(run.checkpoints.iterdir()):
        return
    catalog, prior = DatasetCatalog(data), config.data.prior
    versions = [version_of(catalog.get(concept.settings.dataset), concept.pictures) for concept in concepts]
    if prior.class_prompt and prior.dataset and prior.source == "class_pictures":
        pictures = catalog.scan(prior.dataset).usable
        versions.append(version_of(catalog.get(prior.dataset), pictures, role="class_pictures"))
    write_versions(run.folder, versions)


def dataset_hashes(run: Run) -> dict[str, str]:
    """Hash of each of the run's data sets, by its name; empty for a run that wrote none down."""
    if not (run.folder / FILE_NAME).exists():
        return {}
    return {version.name: version.sha256 for version in read_versions(run.folder)}
