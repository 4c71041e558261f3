"""Images without labels: those of imagesTs, stored beside the training cases."""

from __future__ import annotations

from pathlib import Path

from samunet import paths
from samunet.dataset.description import Description
from samunet.dataset.layout import list_cases
from samunet.plans import ConfigurationPlan, Plans
from samunet.preprocessing.run import store_cases
from samunet.preprocessing.store import StoredCase


def stored_test_images(
    source: Path,
    plans: Plans,
    configuration: ConfigurationPlan,
    description: Description,
    num_workers: int = 0,
    progress: bool = True,
) -> dict[str, StoredCase]:
    """The images of ``imagesTs`` by name, preprocessed as those of a prediction; none where there are none.

    Args:
        source: Folder of the preprocessed dataset, where they are stored.
        plans, configuration, description: Of the dataset.
        num_workers: Processes that preprocess.
        progress: Whether to show a progress bar.
    """
    folder = paths.raw_folder() / source.name / "imagesTs"
    if not (folder.is_dir() and any(not entry.name.startswith(".") for entry in folder.iterdir())):
        return {}
    cases = list_cases(folder, description)
    target = source / f"{configuration.data_identifier}_imagesTs"
    store_cases(
        cases, description, plans, configuration, target,
        num_workers=num_workers, progress=progress, tolerate_geometry=True,
    )  # fmt: skip
    return {name: StoredCase(target, name) for name in cases}
