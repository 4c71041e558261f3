"""Preprocesses a whole dataset into stored slices; resumable, case by case."""

from __future__ import annotations

from pathlib import Path

from samunet.dataset.cases import Case, Dataset
from samunet.dataset.description import Description
from samunet.errors import SamunetError, raise_failures
from samunet.files import make_folder
from samunet.plans import ConfigurationPlan, Plans, fingerprint_of
from samunet.preprocessing.case import prepare_case, read_case
from samunet.preprocessing.store import StoredCase, StoreKey, is_stored, stored_plans, write_case
from samunet.workers import map_cases


def preprocess_dataset(
    dataset: Dataset,
    plans: Plans,
    configuration: ConfigurationPlan,
    folder: Path,
    *,
    num_workers: int = 0,
    progress: bool = True,
    tolerate_geometry: bool = False,
) -> int:
    """Store every training case that is not stored already with the same plans and source files.

    Args:
        folder: The dataset's preprocessed folder; slices go to ``folder / configuration.data_identifier``.
        tolerate_geometry: See :func:`samunet.preprocessing.case.read_case`.

    Returns:
        Number of cases stored now; the others were finished before.

    Raises:
        SamunetError: If the plans have other channels; or, after all others were stored, if cases failed: of several a
            :class:`samunet.errors.CasesFailed` that lists them.
    """
    check_channels(configuration, dataset.description, dataset.folder / "dataset.json")
    return store_cases(
        dataset.cases, dataset.description, plans, configuration, folder / configuration.data_identifier,
        num_workers=num_workers, progress=progress, tolerate_geometry=tolerate_geometry,
    )  # fmt: skip


def store_cases(
    cases: dict[str, Case],
    description: Description,
    plans: Plans,
    configuration: ConfigurationPlan,
    target: Path,
    *,
    num_workers: int = 0,
    progress: bool = True,
    tolerate_geometry: bool = False,
) -> int:
    """As :func:`preprocess_dataset`, for any cases, with or without labels, into the folder ``target``."""
    make_folder(target)
    decisions = _plans_key(plans, configuration, description)
    keys = {name: StoreKey(decisions, _files_key(case)) for name, case in cases.items()}
    todo = [
        name for name, case in cases.items() if not is_stored(target, name, keys[name], labelled=case.label is not None)
    ]
    short = description.without_lists()
    jobs = [(cases[name], short, plans, configuration, target, keys[name], tolerate_geometry) for name in todo]
    failures: dict[str, SamunetError] = {}
    for _ in map_cases(
        _store, todo, jobs,
        num_workers=num_workers, description="Preprocessing", progress=progress, failures=failures,
    ):  # fmt: skip
        pass
    raise_failures(failures, len(todo), "mend or remove these cases, then run the same command again")
    return len(todo)


def check_channels(configuration: ConfigurationPlan, description: Description, source: Path) -> None:
    """Check that the plans prepare as many channels as dataset.json lists.

    Args:
        configuration: Of the plans.
        description: Read from ``source``.
        source: The dataset.json, for the message.

    Raises:
        SamunetError: If they do not.
    """
    given, planned = len(description.channel_names), len(configuration.normalization)
    if given != planned:
        names = ", ".join(description.channel_names)
        raise SamunetError(
            f"{source}: channel_names lists {given} channel{'s' if given > 1 else ''} ({names}), but the plans were "
            f"made for {planned} (normalization)",
            "undo the edit of channel_names, or plan again: samunet_plan_and_preprocess -d ID",
        )


def stored_cases(
    folder: Path, plans: Plans, configuration: ConfigurationPlan, description: Description, names: list[str]
) -> dict[str, StoredCase]:
    """Open the stored cases of a configuration.

    Raises:
        SamunetError: If some were never preprocessed, or with other plans.
    """
    target = folder / configuration.data_identifier
    wanted = _plans_key(plans, configuration, description)
    outdated = [name for name in names if stored_plans(target, name) != wanted]
    if outdated:
        raise SamunetError(
            f"{len(outdated)} of {len(names)} cases are not preprocessed with these plans in {target} "
            f"(for example {outdated[0]})",
            f"samunet_preprocess -d {folder.name} -p {plans.plans_name} -c "
            f"{configuration.data_identifier.removeprefix(f'{plans.plans_name}_')}",
        )
    return {name: StoredCase(target, name) for name in names}


def _store(
    case: Case,
    description: Description,
    plans: Plans,
    configuration: ConfigurationPlan,
    target: Path,
    key: StoreKey,
    tolerate_geometry: bool,
) -> None:
    image, label = read_case(case, description, tolerate_geometry=tolerate_geometry)
    prepared = prepare_case(image, label, plans, configuration, description.labels.ignore)
    del image, label  # their memory is needed for compression
    cubes = len(configuration.planes) > 1
    write_case(target, case.name, prepared, key, description.labels.ignore, cubes=cubes)


def _files_key(case: Case) -> str:
    """Hash of a case's files: names, sizes and times."""
    paths = [path for path in (*case.images, case.label) if path is not None]
    return fingerprint_of([[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in paths])


def _plans_key(plans: Plans, configuration: ConfigurationPlan, description: Description) -> str:
    """Hash of the decisions about preprocessing alone, and of the ignore label, which stored places depend on."""
    # Only CT uses the dataset's statistics: other cases need not be made again when a case joins the dataset.
    statistics = plans.foreground_intensity_properties_per_channel if "ct" in configuration.normalization else {}
    return fingerprint_of(
        plans.orientation,
        plans.transpose_forward,
        configuration.spacing,
        configuration.normalization,
        configuration.use_mask_for_norm,
        {channel: vars(values) for channel, values in statistics.items()},
        description.labels.ignore,
    )
