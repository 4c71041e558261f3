"""Warnings of images whose intensities are not the training's."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk

from samunet.commands import run_command
from samunet.inference.intensities import IntensityWatch
from samunet.planning.intensities import UsualIntensities, unusual_cases, warning

CT = UsualIntensities("CT", [-1024, -1000, -1024, -2048, -990], [3071, 1800, 2500, 3071, 1200])
MRI = UsualIntensities("MRI", [0, 0, 3, 0, 0], [4000, 1800, 3100, 2500, 1900])


@pytest.mark.parametrize(
    ("usual", "low", "high", "cause"),
    [
        (CT, 0, 4095, "not rescaled to HU"),
        (CT, -1024, 3071, ""),
        (CT, -1024, 30000, ""),  # metal: less than ten times the range
        (CT, -200, 300, ""),  # a window of soft tissue, which is clipped anyway
        (CT, -1, 1, "0 to 1"),
        (MRI, 0, 1, "0 to 1"),
        (MRI, 0, 65535, "not scaled"),
        (MRI, 0, 255, ""),  # half of an MRI's usual range is no evidence: 1800 is not ten times as much
        (MRI, 0, 100, "0 to 255"),
        (MRI, -1000, 1000, ""),
        (UsualIntensities("CT", [0, 0, 5], [4095, 3000, 4095]), -1024, 3071, "HU"),
        (UsualIntensities("CT", [], []), 0, 1, ""),  # handed on without its cases
    ],
)
def test_what_is_unusual(usual, low, high, cause):
    doubt = usual.doubt(low, high)
    assert (cause in doubt) if cause else doubt == ""


def test_two_wrong_cases_of_a_dataset_do_not_vouch_for_each_other():
    ranges = {f"c{index}": (-1024.0, 2000.0 + index) for index in range(10)} | {"x": (0.0, 4095.0), "y": (0.0, 4095.0)}
    cases = {name: SimpleNamespace(minimum=[low], maximum=[high]) for name, (low, high) in ranges.items()}
    found = unusual_cases(SimpleNamespace(cases=cases), ["CT"])
    assert set(found) == {"x", "y"}
    said = warning(found)
    assert "case x" in said
    assert "from 0 to 4095, usual is -1024 to 4095" in said
    assert "1 more like it: y" in said


def test_a_prediction_says_it_at_once_and_counts_at_the_end(caplog):
    watch = IntensityWatch([CT])
    for name, low, high in (("a", -1000, 900), ("b", 0, 4095), ("c", 0, 4000)):
        watch.look(np.array([low, high], np.float32).reshape(1, 1, 1, 2), Path(f"{name}.nii.gz"))
    assert [record.message.split(":")[0] for record in caplog.records] == ["intensities of image b.nii.gz look wrong"]
    watch.sum_up()
    assert "1 more like it: c.nii.gz" in caplog.records[-1].message


def test_a_model_without_the_cases_of_its_training_is_silent(tmp_path, caplog):
    model = SimpleNamespace(path=tmp_path, description=SimpleNamespace(channel_names=["CT"]))
    watch = IntensityWatch.of(model)
    watch.look(np.zeros((1, 1, 1, 2), np.float32), Path("a.nii.gz"))
    assert not caplog.records


def test_measuring_a_dataset_names_the_case_that_lies_outside(samunet_folders, tiny_dataset, capsys):
    file = tiny_dataset() / "imagesTr" / "case_3_0000.nii.gz"
    image = sitk.ReadImage(str(file))
    sitk.WriteImage(image / 1000, str(file))
    assert run_command("samunet_extract_fingerprint", ["-d", "998"]) == 0
    errors = capsys.readouterr().err
    assert "intensities of case case_3 look wrong" in errors
    assert "more like it" not in errors
