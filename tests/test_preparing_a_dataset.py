"""The worked examples of ``documentation/preparing_a_dataset.md`` make datasets that samunet accepts."""

import re
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from samunet.dataset.layout import load_dataset
from samunet.preprocessing.case import read_case

PAGE = Path(__file__).parents[1] / "documentation" / "preparing_a_dataset.md"
SCRIPTS = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def volume(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(np.resize(np.array(values, np.int16), (3, 8, 7)))
    image.SetOrigin((5.0, -3.0, 2.0))
    sitk.WriteImage(image, path)


def ct_scans(folder):
    for name in ("anna", "bert"):
        volume(folder / "scans" / f"{name}_ct.nii.gz", range(-40, 40))
        volume(folder / "scans" / f"{name}_liver.nii.gz", [0, 1])


def photographs(folder):
    rng = np.random.default_rng(0)
    for part in ("photos", "masks"):
        (folder / part).mkdir()
    for name in ("eye01", "eye02"):
        Image.fromarray(rng.integers(0, 255, (20, 24, 3), np.uint8)).save(folder / "photos" / f"{name}.jpg")
        Image.fromarray(255 * rng.integers(0, 2, (20, 24), np.uint8)).save(folder / "masks" / f"{name}.png")


def tumours(folder):
    for name in ("p07", "p08"):
        volume(folder / "patients" / name / "flair.nii.gz", range(50))
        volume(folder / "patients" / name / "t1c.nii.gz", range(30))
        volume(folder / "patients" / name / "seg.nii.gz", [0, 1, 2, 4])


EXAMPLES = [
    (ct_scans, "Dataset011_Liver", 1, {0, 1}),
    (photographs, "Dataset012_Vessels", 3, {0, 1}),
    (tumours, "Dataset013_Tumour", 2, {0, 1, 2, 3}),
]


def test_every_script_is_tested():
    assert len(SCRIPTS) == len(EXAMPLES)


@pytest.mark.parametrize(
    ("script", "make_sources", "name", "channels", "values"),
    [(script, *example) for script, example in zip(SCRIPTS, EXAMPLES)],
    ids=[example[1] for example in EXAMPLES],
)
def test_worked_example(script, make_sources, name, channels, values, samunet_folders, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_sources(tmp_path)
    exec(compile(script, str(PAGE), "exec"), {})
    dataset = load_dataset(name)
    assert len(dataset.cases) == 2
    for case in dataset.cases.values():
        image, label = read_case(case, dataset.description)
        assert len(image.array) == channels
        assert set(np.unique(label)) == values
