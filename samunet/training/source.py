"""What trainings and pretrainings read: a preprocessed dataset and one configuration of its plans."""

from __future__ import annotations

from pathlib import Path

from samunet import paths
from samunet.dataset.description import read_description
from samunet.dataset.layout import list_cases, raw_dataset
from samunet.devices import resolve_device
from samunet.encoders import encoder_facts
from samunet.models.pretrained import automatic_encoder
from samunet.planning.fingerprint import FILE_NAME as FINGERPRINT_FILE
from samunet.planning.fingerprint import read_fingerprint
from samunet.plans import NetworkPlan, plans_called
from samunet.preprocessing.run import check_cases, store_cases, stored_cases
from samunet.preprocessing.store import StoredCase


class Source:
    """A preprocessed dataset, with one configuration of its plans.

    Args:
        dataset_name: Its full name.
        configuration_name: For example ``2d``.
        plans_name: Which plans.

    Attributes:
        folder: The preprocessed dataset's.
        plans, configuration, description, fingerprint: What lies in it.
        raw: The raw dataset; None where it is not there.

    Raises:
        SamunetError: If the dataset is not planned, or its raw training cases are no longer those that were measured.
    """

    def __init__(self, dataset_name: str, configuration_name: str, plans_name: str) -> None:
        self.dataset_name, self.configuration_name, self.plans_name = dataset_name, configuration_name, plans_name
        self.folder = paths.preprocessed_folder() / dataset_name
        self.plans, self.description = plans_called(plans_name, self.folder), read_description(self.folder)
        self.configuration = self.plans.configuration(configuration_name)
        self.fingerprint = read_fingerprint(self.folder / FINGERPRINT_FILE)
        self.raw = raw_dataset(dataset_name)
        if self.raw is not None:
            check_cases(self.raw, self.fingerprint.cases)

    def network(self, encoder: str | None, checkpoint: Path | None, device: str) -> tuple[NetworkPlan, str]:
        """The network with an encoder, or the one that suits plans, checkpoint and machine; and, of the last, why."""
        wanted, why = encoder or (self.configuration.default_sam if checkpoint else self.plans.encoder), ""
        if wanted == "auto":
            gpu = resolve_device(device).type != "cpu"
            wanted, why = automatic_encoder(self.configuration.networks, gpu=gpu)
        encoder_facts(wanted)
        return self.plans.network(self.configuration, wanted), why

    def stored(self, names: list[str], *, images_only: bool = False) -> dict[str, StoredCase]:
        """Stored training cases by name, once it is sure that they are as the plans and the raw files say."""
        given = (self.folder, self.plans, self.configuration, self.description, names, self.raw)
        return stored_cases(*given, images_only=images_only)

    def test_images(self, num_workers: int = 0, progress: bool = True) -> dict[str, StoredCase]:
        """The images of ``imagesTs`` by name, preprocessed as those of a prediction; none where there are none."""
        folder = paths.raw_folder() / self.dataset_name / "imagesTs"
        if not (folder.is_dir() and any(not entry.name.startswith(".") for entry in folder.iterdir())):
            return {}
        cases = list_cases(folder, self.description)
        target = self.folder / f"{self.configuration.data_identifier}_imagesTs"
        store_cases(
            cases, self.description, self.plans, self.configuration, target,
            num_workers=num_workers, progress=progress, tolerate_geometry=True,
        )  # fmt: skip
        return {name: StoredCase(target, name) for name in cases}
