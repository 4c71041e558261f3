"""The Synapse multi-organ CTs (BTCV) with TransUNet's split, from the forms in which people have them, as a dataset.

* TransUNet's preprocessed files, which SAMed uses as well: ``case0005_slice000.npz`` of 18 training cases and
  ``case0001.npy.h5`` of 12 test volumes, each with ``image`` (HU clipped to -125 to 275, on 0-1) and ``label``. Their
  label values have two orders, TransUNet's and that of SAMed's own files; their axes may be transposed; their spacing
  is not known.
* The original download: ``img/img0001.nii.gz`` and ``label/label0001.nii.gz`` of 30 cases with 13 organs.

Either gives the same dataset: the images on 0-1, eight organs in TransUNet's order, the training cases in imagesTr and
the test cases in imagesTs and labelsTs.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from samunet.conversion.samed import read_stack
from samunet.errors import SamunetError, UsageError
from samunet.files import atomic_path, read_json, write_json

ORGANS = ("aorta", "gallbladder", "left kidney", "right kidney", "liver", "pancreas", "spleen", "stomach")
_BTCV = (
    "spleen", "right kidney", "left kidney", "gallbladder", "esophagus", "liver", "stomach", "aorta",
    "inferior vena cava", "portal and splenic vein", "pancreas", "right adrenal gland", "left adrenal gland",
)  # fmt: skip
ORDERS = {
    "transunet": ORGANS,
    "samed": ("spleen", "right kidney", "left kidney", "gallbladder", "liver", "stomach", "aorta", "pancreas"),
    "btcv": _BTCV,
}
TEST_CASES = tuple(f"case{number:04d}" for number in (1, 2, 3, 4, 8, 22, 25, 29, 32, 35, 36, 38))
DATASET = "Dataset980_Synapse"
_RECORD = "synapse.json"
_WINDOW = (-125.0, 275.0)
# The preprocessed files have no spacing. BTCV's pixels are 0.54 to 0.98 mm wide at 512 pixels, its slices mostly 3 mm
# apart; the same numbers for every case change nothing but the choice of neighbouring slices as context.
_WIDTH_MM, _SLICE_MM = 390.0, 3.0

_SLICE = re.compile(r"^(?P<case>.+)_slice_?(?P<number>\d+)\.npz$")
_VOLUME = re.compile(r"^(?P<case>.+?)(\.npy)?\.h5$")
_IMAGE = re.compile(r"^img(?P<number>\d{4})\.nii(\.gz)?$")

log = logging.getLogger("samunet.synapse")


@dataclass(frozen=True)
class Case:
    """One case of the source; its arrays are read when they are needed.

    Attributes:
        name: Such as ``case0005``.
        read: Gives the image ``(z, y, x)`` float32 on 0-1, or None if only labels are asked for; the label
            ``(z, y, x)`` with the source's values; and the spacing ``[z, y, x]`` in mm, or None where it is not known.
        test: Whether it belongs to the test cases.
    """

    name: str
    read: Callable[[bool], tuple[np.ndarray | None, np.ndarray, list[float] | None]]
    test: bool


def prepare(sources: Sequence[Path], raw: Path, order: str = "auto") -> Path:
    """Write the dataset, unless it is there already.

    Args:
        sources: Folders that are searched, themselves and two levels below.
        raw: Folder of the raw datasets.
        order: Of the label values: a key of :data:`ORDERS`, or ``auto`` to tell it from the organs' sizes.

    Returns:
        The dataset's folder.

    Raises:
        SamunetError: If files are missing, damaged or contradict each other; the message names them.
    """
    target = raw / DATASET
    record = {"sources": sorted(str(path.resolve()) for path in sources), "order": order}
    if (target / _RECORD).is_file():
        made = read_json(target / _RECORD)
        if {key: made.get(key) for key in record} != record:
            raise UsageError(
                f"{target} was made from {', '.join(made.get('sources', []))} with --labels {made.get('order')}",
                "give the same again, or another --work FOLDER",
            )
        return target
    cases = find_cases(sources)
    voxels, centres = _survey(cases)
    values = ORDERS[label_order(voxels) if order == "auto" else order]
    if max(voxels) > len(values):
        raise UsageError(
            f"the labels have the value {max(voxels)}, and the order {order} has {len(values)} organs",
            f"leave out --labels, or give another: {', '.join(ORDERS)}",
        )
    sideways = _transposed(centres, values)
    for number, case in enumerate(cases, start=1):
        log.info("preparing %s (%d of %d)", case.name, number, len(cases))
        _write_case(case, values, sideways, target)
    description = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0} | {organ: value for value, organ in enumerate(ORGANS, start=1)},
        "numTraining": sum(not case.test for case in cases),
        "file_ending": ".nii.gz",
    }
    write_json(target / "dataset.json", description)
    write_json(target / _RECORD, record | {"values": list(values), "transposed": sideways})
    return target


def find_cases(sources: Sequence[Path]) -> list[Case]:
    """All cases of a source, training cases first.

    Raises:
        SamunetError: If it has neither form, or training and test cases overlap.
    """
    for source in sources:
        if not source.is_dir():
            raise UsageError(f"{source} is not a folder", "give the folder with TransUNet's or BTCV's files: --data")
    levels = [source.glob(level) for source in sources for level in ("*", "*/*", "*/*/*")]
    folders = sorted({path.resolve() for paths in (sources, *levels) for path in paths if path.is_dir()})
    slices = _the_one(folders, _SLICE, "slices (…_slice000.npz)")
    volumes = _the_one(folders, _VOLUME, "volumes (….npy.h5)")
    labelled = [folder for folder in folders if (folder.parent / "label").is_dir()]
    images = _the_one(labelled, _IMAGE, "images (img0001.nii.gz)")
    if slices and volumes:
        cases = [*_from_slices(slices), *_from_volumes(volumes)]
    elif images:
        cases = _from_nifti(images)
    else:
        lacking = "the test volumes (case0001.npy.h5)" if slices else "the training slices (case0005_slice000.npz)"
        what = f"there are not {lacking}" if slices or volumes else "there is nothing of the Synapse data"
        raise UsageError(
            f"{what} in {', '.join(map(str, sources))}",
            "give the folders with train_npz and test_vol_h5, or with img and label of the original download: --data",
        )
    training, test = ({case.name for case in cases if case.test == part} for part in (False, True))
    if training & test:
        raise SamunetError(
            f"{', '.join(sorted(training & test)[:5])} would be both trained on and tested on",
            "the test cases must not be among the training slices",
        )
    if not training or not test:
        raise SamunetError(f"there are no {'test' if training else 'training'} cases", f"test cases: {TEST_CASES}")
    unusual = sorted(test ^ set(TEST_CASES))
    if unusual:
        listed = ", ".join(unusual)
        log.warning("not TransUNet's 12 test cases (%s differ): published numbers cannot be compared", listed)
    return sorted(cases, key=lambda case: (case.test, case.name))


def label_order(voxels: dict[int, int]) -> str:
    """Tell the order of the label values from voxels by value, over all training cases.

    Raises:
        SamunetError: If the sizes fit neither order.
    """
    if max(voxels) > len(ORGANS):
        log.info("labels: BTCV's 13 organs, for the values go up to %d", max(voxels))
        return "btcv"
    count = [voxels.get(value, 0) for value in range(len(ORGANS) + 1)]
    # TransUNet: 6 pancreas, 8 stomach, 1 aorta, 7 spleen; SAMed: 6 stomach, 8 pancreas, 1 spleen, 7 aorta.
    votes = {count[8] > count[6], count[7] > count[1]}
    if len(votes) > 1 or not (count[6] and count[8] and count[1] and count[7]):
        raise SamunetError(
            "the sizes of the labelled organs do not tell in which order the label values are (voxels by value: "
            f"{', '.join(f'{value}: {number}' for value, number in sorted(voxels.items()))})",
            "say it: --labels transunet (1 aorta, 8 stomach), samed (1 spleen, 8 pancreas) or btcv (13 organs)",
        )
    order = "transunet" if votes == {True} else "samed"
    log.info("labels: in the order of %s, by the sizes of the organs", order)
    return order


def _survey(cases: list[Case]) -> tuple[dict[int, int], list[dict[int, np.ndarray]]]:
    """Voxels by label value over the training cases; and of every training case, each value's in-plane centre."""
    voxels: dict[int, int] = {}
    centres = []
    for case in cases:
        if case.test:
            continue
        _, label, _ = case.read(False)
        _check_label(label, case.name)
        found, counts = np.unique(label, return_counts=True)
        for value, count in zip(found.astype(int).tolist(), counts.tolist()):
            if value:
                voxels[value] = voxels.get(value, 0) + count
        pair = [value for value in (2, 3, 4) if value in found]  # the kidneys are two of these in every order
        centres.append({value: np.argwhere(label == value)[:, 1:].mean(0) for value in pair})
    if not voxels:
        raise SamunetError("the training cases have empty labels", "give the files with their labels: --data")
    return voxels, centres


def _transposed(centres: list[dict[int, np.ndarray]], values: Sequence[str]) -> bool:
    """Whether left and right lie along a slice's first axis, told from the kidneys.

    Where left and right are told apart, samunet never mirrors x, and x must then be the patient's left and right.
    """
    left, right = (values.index(organ) + 1 for organ in ("left kidney", "right kidney"))
    apart = [np.abs(case[left] - case[right]) for case in centres if left in case and right in case]
    rows, columns = np.mean(apart, axis=0) if apart else (0, 1)
    if rows > columns:
        log.info("the slices are transposed (the kidneys lie above each other): rows and columns are swapped")
    return bool(rows > columns)


def _write_case(case: Case, values: Sequence[str], sideways: bool, target: Path) -> None:
    import SimpleITK as sitk

    part = "Ts" if case.test else "Tr"
    files = (target / f"images{part}" / f"{case.name}_0000.nii.gz", target / f"labels{part}" / f"{case.name}.nii.gz")
    image, label, spacing = case.read(True)
    _check_label(label, case.name, len(values))
    if image.shape != label.shape:
        raise SamunetError(f"{case.name}: the image has shape {image.shape}, the label {label.shape}")
    if not np.isfinite(image).all() or image.min() < -0.01 or image.max() > 1.01:
        raise SamunetError(
            f"{case.name}: the image has values from {image.min():g} to {image.max():g}, and should have 0 to 1",
            "give TransUNet's or SAMed's preprocessed files, or the original download",
        )
    table = np.array([0] + [ORGANS.index(organ) + 1 if organ in ORGANS else 0 for organ in values], np.uint8)
    for array, file in zip((image, table[label.astype(np.int64)]), files):
        pixel = spacing or [_SLICE_MM] + [_WIDTH_MM / max(array.shape[1:])] * 2
        if sideways:
            array, pixel = array.swapaxes(1, 2), [pixel[0], pixel[2], pixel[1]]
        volume = sitk.GetImageFromArray(np.ascontiguousarray(array))
        volume.SetSpacing(pixel[::-1])
        with atomic_path(file) as temporary:
            sitk.WriteImage(volume, str(temporary), useCompression=True)


def _the_one(folders: list[Path], name: re.Pattern, what: str) -> dict[str, Path] | None:
    """The files of one kind, which must lie in one folder."""
    found = {}
    for folder in folders:
        files = {file.name: file for file in sorted(folder.iterdir()) if name.match(file.name)}
        if files:
            found[folder] = files
    if len(found) > 1:
        raise UsageError(
            f"{what} lie in several folders: {', '.join(map(str, found))}",
            "give just those that are meant: --data FOLDER FOLDER",
        )
    return next(iter(found.values()), None)


def _from_slices(files: dict[str, Path]) -> Iterator[Case]:
    cases: dict[str, dict[int, Path]] = {}
    for name, file in files.items():
        match = _SLICE.match(name)
        cases.setdefault(match["case"], {})[int(match["number"])] = file
    for case, slices in cases.items():
        first, last = min(slices), max(slices)
        lacking = [number for number in range(min(first, 1), last + 1) if number not in slices]
        if lacking:
            raise SamunetError(
                f"{case} lacks {len(lacking)} of its slices, such as number {lacking[0]}", "download it again"
            )
        yield Case(case, _reader([slices[number] for number in sorted(slices)]), test=False)


def _from_volumes(files: dict[str, Path]) -> Iterator[Case]:
    for name, file in files.items():
        yield Case(_VOLUME.match(name)["case"], _reader([file]), test=True)


def _reader(files: Sequence[Path]) -> Callable:
    def read(with_image: bool) -> tuple[np.ndarray | None, np.ndarray, None]:
        image = read_stack(files, "image").astype(np.float32) if with_image else None
        return image, read_stack(files, "label"), None

    return read


def _from_nifti(files: dict[str, Path]) -> list[Case]:
    cases, lacking = [], []
    for name, file in files.items():
        number = _IMAGE.match(name)["number"]
        label = file.parent.parent / "label" / name.replace("img", "label", 1)
        if not label.is_file():
            lacking.append(label)
            continue
        case = f"case{number}"
        cases.append(Case(case, _nifti_reader(file, label), test=case in TEST_CASES))
    if lacking:
        raise SamunetError(
            f"{len(lacking)} of {len(files)} images have no label, such as {lacking[0]}",
            "complete the folder label; BTCV's own test cases, which have none, belong into a folder of their own",
        )
    return cases


def _nifti_reader(image_file: Path, label_file: Path) -> Callable:
    def read(with_image: bool) -> tuple[np.ndarray | None, np.ndarray, list[float]]:
        from samunet.imageio.registry import reader_for

        reader = reader_for(".nii.gz" if image_file.name.endswith(".gz") else ".nii")
        label, geometry = reader.read_label(label_file)
        image = None
        if with_image:
            low, high = _WINDOW
            volume = reader.read_image([image_file], channels=1)
            image, geometry = (np.clip(volume.array[0], low, high) - low) / (high - low), volume.geometry
        return image, label, list(map(float, geometry.spacing))

    return read


def _check_label(label: np.ndarray, case: str, largest: int = len(_BTCV)) -> None:
    if not np.isfinite(label).all() or label.min() < 0 or label.max() > largest or (label % 1).any():
        raise SamunetError(
            f"{case}: the label has values from {label.min():g} to {label.max():g}, not just whole numbers from 0 to "
            f"{largest}",
            "give the files as TransUNet, SAMed or BTCV have them",
        )
