"""``report.html`` about a cross-validation or a prediction, whichever a folder holds."""

from __future__ import annotations

import os
from pathlib import Path

from samunet.dataset.layout import find_dataset
from samunet.dataset.outputs import ARGUMENTS, check_place, check_replaced
from samunet.errors import UsageError
from samunet.files import write_text
from samunet.models.choose import trained_model
from samunet.models.folder import ModelFolder
from samunet.plans import DEFAULT_PLANS_NAME
from samunet.report.crossval import crossval_report
from samunet.report.page import MADE_BY
from samunet.report.prediction import prediction_report


def report(
    source: str | int | Path,
    configuration: str = "2d",
    plans_name: str = DEFAULT_PLANS_NAME,
    *,
    images: str | Path | None = None,
    pictures: int = 6,
    window: tuple[float, float] | None = None,
    output: str | Path | None = None,
) -> Path:
    """Write one self-contained page, worst cases first.

    Args:
        source: A dataset or a model's folder, for its cross-validation; or a folder of predicted masks.
        configuration, plans_name: Of a dataset: which model.
        images: Of a prediction: where its images are; None for where they were when predicted.
        pictures: Cases to show in pictures.
        window: Intensities shown black and white; None for the plans' percentiles of CT, the slices' own of others.
        output: File to write; None for ``report.html`` in the model's folder or among the masks.

    Returns:
        The file.

    Raises:
        UsageError: If ``source`` is none of the three or not trained, or ``output`` is no place for a report.
        SamunetError: If a file is missing or damaged.
    """
    folder = Path(str(source))
    model = None if (folder / ARGUMENTS).is_file() else _model(folder, configuration, plans_name, images is not None)
    target = check_place(Path(output)) if output else (model.path if model else folder) / "report.html"
    check_replaced(target, MADE_BY)
    if model is None:
        content = prediction_report(folder, None if images is None else Path(images), pictures, window)
    else:
        content = crossval_report(model, pictures, window)
    write_text(target, content)
    return target


def _model(folder: Path, configuration: str, plans_name: str, with_images: bool) -> ModelFolder:
    if with_images:
        raise UsageError("-i is for the report of a prediction", "give the folder that samunet_predict wrote")
    if folder.is_dir():
        if not (folder / "plans.json").is_file():
            raise UsageError(
                f"{folder} is neither a folder that samunet_predict wrote nor a model's folder",
                "give a dataset (samunet_report 027), a model's folder, or a folder of masks (samunet_report preds)",
            )
        return ModelFolder(Path(os.path.abspath(folder)))  # "." has no name
    return trained_model(find_dataset(str(folder)), configuration, plans_name)
