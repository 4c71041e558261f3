"""The commands of ``documentation/guide/prepare.md``, run as they stand, make datasets that samunet accepts."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from samunet.commands import run_command
from samunet.dataset.description import description_from_json
from samunet.dataset.layout import load_dataset
from samunet.files import read_json
from samunet.preprocessing.case import read_case

PAGE = Path(__file__).parents[1] / "documentation" / "guide" / "prepare.md"
TEXT = PAGE.read_text(encoding="utf-8")
COMMANDS = re.findall(r"^samunet_make_dataset (.*)$", TEXT, re.MULTILINE)


def volume(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(np.resize(np.array(values, np.int16), (3, 8, 7)))
    image.SetOrigin((5.0, -3.0, 2.0))
    sitk.WriteImage(image, path)


def ct_scans(folder):
    for name in ("anna", "bert"):
        volume(folder / "scans" / f"{name}_ct.nii.gz", range(-40, 40))
        volume(folder / "scans" / f"{name}_liver.nii.gz", [0, 1])


def segmentations(folder):
    """As 3D Slicer saves them: names and values of the segments in the header."""
    for name in ("anna", "bert"):
        volume(folder / "scans" / f"{name}.nrrd", range(-40, 40))
        image = sitk.ReadImage(folder / "scans" / f"{name}.nrrd")
        drawn = sitk.Cast(sitk.GetImageFromArray(np.resize([0, 1, 2], (3, 8, 7))), sitk.sitkUInt8)
        drawn.CopyInformation(image)
        for number, segment in enumerate(("tumour", "liver")):
            drawn.SetMetaData(f"Segment{number}_Name", segment)
            drawn.SetMetaData(f"Segment{number}_LabelValue", str(number + 1))
            drawn.SetMetaData(f"Segment{number}_Layer", "0")
        sitk.WriteImage(drawn, folder / "scans" / f"{name}.seg.nrrd")


def photographs(folder):
    rng = np.random.default_rng(0)
    for part in ("photos", "masks"):
        (folder / part).mkdir()
    for name in ("eye01", "eye02"):
        Image.fromarray(rng.integers(0, 255, (20, 24, 3), np.uint8)).save(folder / "photos" / f"{name}.jpg")
        Image.fromarray(255 * rng.integers(0, 2, (20, 24), np.uint8)).save(folder / "masks" / f"{name}.png")


def class_files(folder):
    for name in ("anna", "bert"):
        volume(folder / "scans" / f"{name}.nii.gz", range(-40, 40))
        volume(folder / "masks" / f"{name}_liver.nii.gz", [0, 1, 1])
        volume(folder / "masks" / f"{name}_tumour.nii.gz", [0, 0, 1])


def tumours(folder):
    for name in ("p07", "p08"):
        volume(folder / "patients" / name / "flair.nii.gz", range(50))
        volume(folder / "patients" / name / "t1c.nii.gz", range(30))
        volume(folder / "patients" / name / "seg.nii.gz", [0, 1, 2, 4])


def eyes(folder):
    rng = np.random.default_rng(0)
    for name in ("p01/left", "p01/right", "p02/left"):
        for part in ("eyes", "drawings"):
            (folder / part / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (20, 24, 3), np.uint8)).save(folder / "eyes" / f"{name}.png")
        Image.fromarray(255 * rng.integers(0, 2, (20, 24), np.uint8)).save(folder / "drawings" / f"{name}.png")


def strokes(folder):
    rng = np.random.default_rng(0)
    for part in ("photos", "strokes"):
        (folder / part).mkdir()
    colours = np.array([(0, 0, 0), (0, 0, 255), (255, 0, 0)], np.uint8)
    for name in ("a", "b"):
        Image.fromarray(rng.integers(0, 255, (20, 24, 3), np.uint8)).save(folder / "photos" / f"{name}.png")
        Image.fromarray(colours[rng.integers(0, 3, (20, 24))]).save(folder / "strokes" / f"{name}.png")


def layers(folder):
    for name in ("anna", "bert"):
        volume(folder / "scans" / f"{name}.nii.gz", range(-40, 40))
        volume(folder / "layers" / f"{name}.nii.gz", [0, 1, 2])


EXAMPLES = [
    (photographs, "Dataset012_Vessels", ("R", "G", "B"), ("background", "vessel")),
    (ct_scans, "Dataset011_Liver", ("CT",), ("background", "liver")),
    (segmentations, "Dataset016_Liver", ("CT",), ("background", "liver", "tumour")),
    (class_files, "Dataset015_LiverTumour", ("CT",), ("background", "liver", "tumour")),
    (tumours, "Dataset013_Tumour", ("FLAIR", "T1c"), ("background", "necrosis", "edema", "enhancing")),
    (strokes, "Dataset017_Wounds", ("R", "G", "B"), ("background", "wound")),
    (layers, "Dataset018_Liver", ("CT",), ("background", "liver")),
    (eyes, "Dataset014_Eyes", ("R", "G", "B"), ("background", "foreground")),
]


def test_every_command_is_tested():
    assert len(COMMANDS) == 1 + len(EXAMPLES)
    assert COMMANDS[0] == f"{COMMANDS[1]} --dry_run"


@pytest.mark.parametrize(
    ("command", "make_sources", "name", "channels", "labels"),
    [(command, *example) for command, example in zip(COMMANDS[1:], EXAMPLES)],
    ids=[example[1] for example in EXAMPLES],
)
def test_worked_example(command, make_sources, name, channels, labels, samunet_folders, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_sources(tmp_path)
    assert run_command("samunet_make_dataset", shlex.split(command)) == 0
    dataset = load_dataset(name)
    assert dataset.description.channel_names == channels
    assert dataset.description.labels.names == labels
    for case in dataset.cases.values():
        image, label = read_case(case, dataset.description)
        assert len(image.array) == len(channels)
        ignore = {dataset.description.labels.ignore} - {None}
        assert set(np.unique(label)) == {*range(len(labels)), *ignore}
    if name == "Dataset014_Eyes":
        assert dataset.description.groups == {"p01_left": "p01", "p01_right": "p01", "p02_left": "p02"}


def test_the_regions_fit_the_tumours(samunet_folders, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tumours(tmp_path)
    (command,) = (command for command in COMMANDS if "--name Tumour" in command)
    assert run_command("samunet_make_dataset", shlex.split(command)) == 0
    content = read_json(tmp_path / "raw" / "Dataset013_Tumour" / "dataset.json")
    (regions,) = (json.loads(block) for block in re.findall(r"^```json\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL))
    assert regions["channel_names"] == content["channel_names"]
    labels = description_from_json(content | regions, "dataset.json").labels
    assert labels.names == ("whole tumour", "tumour core", "enhancing")
