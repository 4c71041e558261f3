"""SAMed's (and TransUNet's) folders: training slices as ``.npz``, test volumes as HDF5.

https://github.com/hitachinsk/SAMed: ``train_npz/case0005_slice000.npz`` has ``image`` and ``label``, both ``(y, x)``;
``test_vol_h5/case0001.npy.h5`` has them as ``(slice, y, x)``. The files know nothing of millimetres.
"""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from samunet.conversion.case import Case, Options, RawMask
from samunet.conversion.draft import Draft, make_draft
from samunet.dataset.cases import entries
from samunet.errors import SamunetError, UsageError
from samunet.files import atomic_path
from samunet.imageio.base import COPY_AGAIN, Geometry, Image, stack_channels, to_label

_SLICE = re.compile(r"(.+?)_?slice_?(\d+)")
_H5_ENDINGS = (".npy.h5", ".h5", ".hdf5")
_FORM = "it must have the arrays image and label of one shape, as SAMed's preprocessing writes them"


@dataclass(frozen=True)
class StackedCase(Case):
    """A case that is a stack of ``.npz`` slices, or one HDF5 volume; its files hold image and label.

    Attributes:
        spacing: Millimetres ``(z, y, x)``, which the files do not have.
    """

    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)

    @property
    def kind(self) -> str:
        """See :class:`Case`."""
        return "volume"

    @property
    def mask_name(self) -> str | None:
        """See :class:`Case`."""
        return self.images[0].name

    def read_image(self) -> Image:
        """See :class:`Case`."""
        return stack_channels([(self.images[0], read_stack(self.images, "image")[None], self._geometry)])

    def read_mask(self, *, as_colours: bool, threshold: float | None) -> RawMask:
        """See :class:`Case`."""
        return RawMask(to_label(read_stack(self.images, "label")[None], self.images[0]), self._geometry)

    def write_image(self, folder: Path, geometry: Geometry) -> None:
        """As NIfTI with 32-bit numbers and no orientation, which the files do not have either."""
        from nibabel import Nifti1Image, save

        image = Nifti1Image(self.read_image().array[0].T, None)
        image.header.set_zooms(geometry.spacing[::-1])
        image.header.set_xyzt_units("mm")
        with atomic_path(folder / f"{self.name}_0000.nii.gz") as temporary:
            save(image, temporary)

    @property
    def _geometry(self) -> Geometry:
        identity = tuple(np.eye(3).ravel().tolist())
        return Geometry(self.spacing, True, (0.0, 0.0, 0.0), identity, dimension=3, placed=False)


def read_stack(files: Sequence[Path], key: str) -> np.ndarray:
    """``image`` or ``label`` of a case, ``(z, y, x)``; both are checked against each other file by file.

    Args:
        files: ``.npz`` slices in their order, or one HDF5 volume.
        key: Which of the two.

    Raises:
        SamunetError: If a file cannot be read or has another form, or slices differ in shape.
    """
    slices = []
    for file in files:
        slices.append((_read_h5(file) if file.name.endswith(_H5_ENDINGS) else _read_npz(file))[key])
        if slices[0].shape[1:] != slices[-1].shape[1:]:
            raise SamunetError(
                f"{file} has slices of {slices[-1].shape[1:]} pixels, but {files[0].name} has {slices[0].shape[1:]}",
                "all slices of a case must have one shape",
            )
    return np.concatenate(slices)


def draft_of_samed(
    name: str,
    root_path: Path,
    volume_path: Path | None,
    list_dir: Path | None,
    options: Options,
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
) -> Draft:
    """Slices stacked to volumes, a case each; test volumes become imagesTs and labelsTs.

    Args:
        name: Such as ``Dataset013_Synapse``.
        root_path: ``train_npz``.
        volume_path: ``test_vol_h5``; None for no test cases.
        list_dir: Folder with ``train.txt`` and ``test_vol.txt``, which name what is taken; None to take all.
        options: What the user says about channels and values.
        spacing: Millimetres ``(z, y, x)`` of all volumes.

    Raises:
        UsageError: If a folder or list is missing or has none of the files, or spacing is not positive.
        SamunetError: If a file is wrong, or h5py is missing.
    """
    if min(spacing) <= 0:
        raise UsageError(
            f"`spacing` must be three positive numbers of mm, got {spacing}", "for example `spacing=[3, 1, 1]`"
        )
    spacing = tuple(float(side) for side in spacing)
    training = [
        StackedCase(case, tuple(files), spacing=spacing)
        for case, files in _by_case(_files(root_path, (".npz",), list_dir, "train.txt")).items()
    ]
    test = []
    if volume_path is not None:
        _h5py()
        volumes = _files(volume_path, _H5_ENDINGS, list_dir, "test_vol.txt")
        test = [StackedCase(stem, (file,), spacing=spacing) for stem, file in volumes.items()]
    return make_draft(name, training, test, options, where=str(root_path))


def _files(folder: Path, endings: Sequence[str], list_dir: Path | None, list_name: str) -> dict[str, Path]:
    """Files of a folder by their stems, sorted; those of a list alone if there is one."""
    if not folder.is_dir():
        raise UsageError(f"there is no folder {folder}", f"give the folder with the {endings[0]} files")
    found = {}
    for file in entries(folder):
        ending = next((ending for ending in endings if file.name.endswith(ending)), None)
        if ending is not None:
            found[file.name.removesuffix(ending)] = file
    if not found:
        raise UsageError(f"{folder} has no files ending in {' or '.join(endings)}", "correct the path")
    if list_dir is None:
        return found
    path = list_dir / list_name
    if not path.is_file():
        raise UsageError(f"there is no {path}", "correct `list_dir`, or leave it out to take all files")
    wanted = [
        line.strip().removesuffix(".npz") for line in path.read_text(encoding="utf-8").splitlines() if line.strip()
    ]
    missing = [stem for stem in wanted if stem not in found]
    if missing or not wanted:
        what = f"names {missing[0]}, which {folder} has not ({len(missing)} are missing)" if missing else "is empty"
        raise SamunetError(f"{path} {what}", "correct the list, or leave out `list_dir` to take all files")
    return {stem: found[stem] for stem in sorted(set(wanted))}


def _by_case(files: dict[str, Path]) -> dict[str, list[Path]]:
    """``case0005_slice000`` is slice 0 of ``case0005``; other names are cases of one slice."""
    cases: dict[str, list[tuple[int, Path]]] = {}
    for stem, file in files.items():
        match = _SLICE.fullmatch(stem)
        cases.setdefault(match[1] if match else stem, []).append((int(match[2]) if match else 0, file))
    return {case: [file for _, file in sorted(found)] for case, found in cases.items()}


def _read_npz(file: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return _checked({key: arrays[key] for key in ("image", "label") if key in arrays}, file)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise SamunetError(f"could not read {file}: {error}", COPY_AGAIN) from error


def _read_h5(file: Path) -> dict[str, np.ndarray]:
    h5py = _h5py()
    try:
        with h5py.File(file, "r") as arrays:
            found = {key: arrays[key] for key in ("image", "label") if key in arrays}
            return _checked({key: data[()] for key, data in found.items() if isinstance(data, h5py.Dataset)}, file)
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        raise SamunetError(f"could not read {file}: {error}", COPY_AGAIN) from error


def _checked(arrays: dict[str, np.ndarray], file: Path) -> dict[str, np.ndarray]:
    """``(z, y, x)`` both."""
    shapes = {key: np.shape(array) for key, array in arrays.items()}
    if set(shapes) != {"image", "label"}:
        raise SamunetError(f"{file} has {', '.join(shapes) or 'neither of the arrays'}", _FORM)
    if shapes["image"] != shapes["label"] or len(shapes["image"]) not in (2, 3):
        raise SamunetError(f"{file}: image is {shapes['image']} and label {shapes['label']}", _FORM)
    return {key: array.reshape(-1, *array.shape[-2:]) for key, array in arrays.items()}


def _h5py() -> Any:
    try:
        import h5py
    except ImportError as error:
        raise SamunetError(
            "reading HDF5 files needs the package h5py, which is not installed",
            "pip install h5py; or leave out `volume_path`",
        ) from error
    return h5py
