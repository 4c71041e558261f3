"""The ACDC challenge's original download: a folder per patient, and two annotated frames in each.

https://www.creatis.insa-lyon.fr/Challenge/acdc: ``training/patient001/`` has ``Info.cfg``, the whole cine loop
``patient001_4d.nii.gz``, and end-diastole and end-systole as ``patient001_frame01.nii.gz`` with
``patient001_frame01_gt.nii.gz``. ``testing`` is the same for patients 101 to 150.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from samunet.conversion.case import Case, Options
from samunet.conversion.draft import Draft, make_draft
from samunet.dataset.cases import entries
from samunet.dataset.problems import Problem
from samunet.errors import SamunetError, UsageError

_LABELS = {0: "background", 1: "RV", 2: "MYO", 3: "LV"}
_PHASES = ("ED", "ES")
_FORM = "the download has training/patient001/Info.cfg, patient001_frame01.nii.gz, patient001_frame01_gt.nii.gz, ..."


def draft_of_acdc(name: str, folder: Path, options: Options) -> Draft:
    """Both frames of every patient, grouped by patient; ``testing`` becomes imagesTs and labelsTs.

    ``phases`` in dataset.json says which case is end-diastole (ED) and which end-systole (ES).

    Args:
        name: Such as ``Dataset027_ACDC``.
        folder: The download, its folder ``database``, or a folder with the patients' folders.
        options: Channel and labels are known: cine MRI, and RV, MYO, LV.

    Raises:
        UsageError: If the folder holds no patients.
        SamunetError: If an Info.cfg or a frame is missing or wrong.
    """
    if not folder.is_dir():
        raise UsageError(f"there is no folder {folder}", _FORM)
    root = folder / "database" if (folder / "database").is_dir() else folder
    training_folder = root / "training" if (root / "training").is_dir() else root
    problems: list[Problem] = []
    phases: dict[str, str] = {}
    training = _cases(training_folder, True, phases, problems)
    if not training and not problems:
        raise UsageError(f"{folder} holds no folders called patient001 and so on", _FORM)
    test = _cases(root / "testing", False, {}, problems) if (root / "testing").is_dir() else []
    options = replace(options, channel_names=("cineMRI",), known=_LABELS)
    return make_draft(name, training, test, options, problems=problems, keys={"phases": phases}, where=str(folder))


def _cases(folder: Path, masks_needed: bool, phases: dict[str, str], problems: list[Problem]) -> list[Case]:
    cases = []
    patients = [entry for entry in entries(folder) if entry.is_dir() and re.fullmatch(r"patient\d+", entry.name)]
    for patient in patients:
        try:
            frames = _frames(patient)
        except SamunetError as error:
            problems.append(Problem("Info.cfg cannot be used:", patient.name, error.message, error.hint or ""))
            continue
        for phase, number in frames.items():
            case = f"{patient.name}_frame{number:02d}"
            image, mask = (_file(patient, f"{case}{suffix}") for suffix in ("", "_gt"))
            missing = [text for text, file in ((case, image), (f"{case}_gt", mask)) if file is None]
            if image is None or (mask is None and masks_needed):
                fix = "unpack the archive again, or move the patient's folder away"
                listed = ", ".join(f"{text}.nii.gz" for text in missing)
                problems.append(Problem("frames are missing:", case, f"{patient} lacks {listed} ({phase})", fix))
                continue
            phases[case] = phase
            cases.append(Case(case, (image,), mask, patient.name))
    return cases


def _frames(patient: Path) -> dict[str, int]:
    """Number of the frame of each phase."""
    path = patient / "Info.cfg"
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise SamunetError(f"{path}: {error.strerror}", "unpack the archive again") from error
    given = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())}
    frames = {phase: given.get(phase, "") for phase in _PHASES}
    if not all(value.isdecimal() for value in frames.values()):
        got = ", ".join(f"{phase}: {value or 'missing'}" for phase, value in frames.items())
        raise SamunetError(f"{path} has {got}", "it must have the numbers of two frames, such as ED: 1 and ES: 12")
    return {phase: int(value) for phase, value in frames.items()}


def _file(patient: Path, stem: str) -> Path | None:
    """The file of a frame; some unpacking programs unzip it."""
    found = (patient / f"{stem}{ending}" for ending in (".nii.gz", ".nii"))
    return next((file for file in found if file.is_file()), None)
