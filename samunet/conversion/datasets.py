"""Functions that make a raw dataset: all files are read first, then it is written, whole or not at all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from samunet.conversion.case import Options
from samunet.conversion.coding import annotated_labels, parse_labels, parse_remap
from samunet.conversion.draft import Draft
from samunet.conversion.write import check_name, check_target, dataset_name, write_dataset
from samunet.errors import UsageError

Words = Sequence[str] | None


def make_dataset(
    images: str | Path,
    masks: str | Path,
    name: str,
    id: str | int,
    *,
    channel_names: Words = None,
    labels: Words = None,
    patient_pattern: str | None = None,
    test_images: str | Path | None = None,
    test_masks: str | Path | None = None,
    **given: Any,
) -> Draft:
    """Make a raw dataset of folders of images and masks.

    Args:
        images, masks: Each a folder, or a pattern such as ``scans/{case}_ct.nii.gz``.
        name, id: ``Vessels`` and 12 make ``Dataset012_Vessels``.
        channel_names: What images show; ``NAME=TEXT`` where file names say it otherwise.
        labels: Names of the classes 1, 2, ...; ``NAME=COLOUR``, or with ``{class}`` in ``masks`` ``NAME=TEXT``.
        patient_pattern: A regular expression that finds a case's patient in its name.
        test_images, test_masks: For ``imagesTs`` and ``labelsTs``.
        given: ``remap`` (words ``OLD=NEW`` about values of masks; empty: number them in order), ``threshold`` (values
            above it are class 1), ``not_annotated`` (colour or value of what nobody annotated, which becomes the
            ignore label) or ``zero_is_not_annotated`` (the same for 0; then ``background`` may stand among ``labels``,
            which are the values 1, 2, ...), ``paint_in_order`` (later classes cover earlier ones),
            ``tolerate_geometry`` (only warn where image and mask differ in origin or direction), ``num_workers``,
            ``overwrite`` (a dataset of the same name), ``dry_run`` (write nothing), and ``show``: called with what is
            to be written before it is.

    Returns:
        What was found; its ``to_text()`` is a table, and its ``name`` the dataset's.

    Raises:
        UsageError: If something that was given does not fit the files.
        SamunetError: If files cannot be read, do not fit together, or cannot be written.
    """
    from samunet.conversion.folders import draft_of_folders

    channels = [word.partition("=") for word in channel_names or ()]
    classes = [word.partition("=") for word in labels or ()]

    def draft(full_name: str, options: Options) -> Draft:
        return draft_of_folders(
            full_name, str(images), str(masks), options,
            channel_texts=[text or channel for channel, _, text in channels],
            class_texts={label: text for label, _, text in classes if text},
            patient_pattern=patient_pattern,
            test_images=test_images and str(test_images),
            test_masks=test_masks and str(test_masks),
        )  # fmt: skip

    names = {"channel_names": [name for name, _, _ in channels], "labels": [name for name, _, _ in classes]}
    return _made("make_dataset", dataset_name(name, id), draft, **names, **given)


def convert_MSD_dataset(folder: str | Path, overwrite_id: int | None = None, **given: Any) -> Draft:
    """Make a raw dataset of a task of the Medical Segmentation Decathlon.

    Args:
        folder: Such as ``Task04_Hippocampus``.
        overwrite_id: Another number than the task's.
        given: See :func:`make_dataset`.
    """
    from samunet.conversion.msd import draft_of_msd, msd_name

    folder = Path(folder)
    name = msd_name(folder, overwrite_id)
    return _made("convert_MSD_dataset", name, lambda name, options: draft_of_msd(name, folder, options), **given)


def convert_old_nnUNet_dataset(folder: str | Path, name: str, **given: Any) -> Draft:
    """Make a raw dataset of a task of nnU-Net v1.

    Args:
        folder: With imagesTr, labelsTr and dataset.json.
        name: Such as ``Dataset004_Hippocampus``.
        given: See :func:`make_dataset`.
    """
    from samunet.conversion.msd import draft_of_old_nnunet

    def draft(full_name: str, options: Options) -> Draft:
        return draft_of_old_nnunet(full_name, Path(folder), options)

    return _made("convert_old_nnUNet_dataset", name, draft, **given)


def convert_ACDC_dataset(folder: str | Path, name: str = "ACDC", id: str | int = 27, **given: Any) -> Draft:
    """Make a raw dataset of the ACDC challenge's download.

    Args:
        folder: The download, its folder ``database``, or a folder with the patients' folders.
        name, id, given: See :func:`make_dataset`.
    """
    from samunet.conversion.acdc import draft_of_acdc

    def draft(full_name: str, options: Options) -> Draft:
        return draft_of_acdc(full_name, Path(folder), options)

    return _made("convert_ACDC_dataset", dataset_name(name, id), draft, **given)


def convert_finetune_SAM_dataset(
    img_folder: str | Path,
    mask_folder: str | Path,
    train_img_list: str | Path,
    name: str,
    id: str | int,
    *,
    val_img_list: str | Path | None = None,
    test_img_list: str | Path | None = None,
    patient_pattern: str | None = None,
    **given: Any,
) -> Draft:
    """Make a raw dataset of pictures that are listed in finetune-SAM's CSV files.

    Args:
        img_folder, mask_folder: What the lists' paths are relative to.
        train_img_list, val_img_list, test_img_list: CSV files of ``IMAGE,MASK``; with a validation list the only fold.
        name, id, patient_pattern, given: See :func:`make_dataset`.
    """
    from samunet.conversion.finetune_sam import draft_of_lists

    files = {"train": train_img_list, "val": val_img_list, "test": test_img_list}
    lists = {part: file and Path(file) for part, file in files.items()}

    def draft(full_name: str, options: Options) -> Draft:
        return draft_of_lists(full_name, Path(img_folder), Path(mask_folder), lists, options, patient_pattern)

    return _made("convert_finetune_SAM_dataset", dataset_name(name, id), draft, **given)


def convert_SAMed_dataset(
    root_path: str | Path,
    name: str,
    id: str | int,
    *,
    volume_path: str | Path | None = None,
    list_dir: str | Path | None = None,
    channel_names: Words = ("image",),
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
    **given: Any,
) -> Draft:
    """Make a raw dataset of SAMed's npz slices and h5 volumes.

    Args:
        root_path, volume_path: ``train_npz``, and ``test_vol_h5`` for ``imagesTs`` and ``labelsTs``.
        list_dir: Take what ``train.txt`` and ``test_vol.txt`` there name.
        spacing: Of all volumes, ``(z, y, x)`` in mm.
        name, id, channel_names, given: See :func:`make_dataset`.
    """
    from samunet.conversion.samed import draft_of_samed

    sources = [path and Path(path) for path in (root_path, volume_path, list_dir)]

    def draft(full_name: str, options: Options) -> Draft:
        return draft_of_samed(full_name, *sources, options, spacing)

    return _made("convert_SAMed_dataset", dataset_name(name, id), draft, channel_names=channel_names, **given)


def _made(
    by: str,
    name: str,
    draft_of: Callable[[str, Options], Draft],
    *,
    channel_names: Words = None,
    labels: Words = None,
    remap: Words = None,
    not_annotated: str | None = None,
    zero_is_not_annotated: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
    show: Callable[[Draft], object] | None = None,
    **answers: Any,
) -> Draft:
    check_name(name)  # before all data are read; a dry run needs no place to write to
    if not dry_run:
        check_target(name, overwrite=overwrite)
    if zero_is_not_annotated:
        if not_annotated is not None:
            raise UsageError(
                "`not_annotated` and `zero_is_not_annotated` both say what is not annotated", "leave one of them out"
            )
        not_annotated = "0"
    background = None
    if not_annotated is not None:
        labels, background = annotated_labels(labels or ())
    options = Options(
        channel_names=tuple(channel_names or ()) or None,
        labels=parse_labels(labels or None),
        remap=parse_remap(remap),
        not_annotated=None if not_annotated is None else not_annotated.strip(),
        background=background,
        as_colours=not_annotated is not None and not not_annotated.strip().lstrip("-").isdecimal(),
        **answers,
    )
    draft = draft_of(name, options)
    if show:
        show(draft)
    if not dry_run:
        write_dataset(draft, f"samunet_{by}")
    return draft
