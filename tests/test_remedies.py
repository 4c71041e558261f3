"""Remedies that messages print do what is missing."""

import pytest

from samunet.commands import run_command
from samunet.dataset.cases import Case
from samunet.dataset.outputs import finish
from samunet.errors import SamunetError
from samunet.inference.records import images_now, made_of_others
from samunet.plans import plans_called


def test_a_misspelt_command_with_arguments_is_named(capsys):
    assert run_command("samunet", ["trian", "021", "2d", "0", "--time_budget", "30s"]) == 2
    err = capsys.readouterr().err
    assert "there is no command trian" in err
    assert "did you mean samunet train?" in err


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("samunetPlans", "samunet_plan_and_preprocess -d 021"),
        ("otherPlans", "samunet_plan_and_preprocess -d 021 -overwrite_plans_name otherPlans"),
    ],
)
def test_plans_that_are_missing_are_made_under_their_name(tmp_path, name, remedy):
    with pytest.raises(SamunetError) as raised:
        plans_called(name, tmp_path / "Dataset021_A")
    assert raised.value.hint == remedy


def test_a_mask_of_another_patients_series_is_told_before_it_is_replaced(tmp_path):
    mine, other = tmp_path / "anna" / "SER1", tmp_path / "bert" / "SER1"
    for series in (mine, other):
        series.mkdir(parents=True)
        (series / "I0001").write_text(series.parent.name * (1 + (series == other)))
    mask = tmp_path / "SER1.nii.gz"
    mask.write_bytes(b"mask")
    finish(mask, images=images_now(Case("SER1", (mine,), None)))
    assert made_of_others([Case("SER1", (mine,), None)], lambda case: mask) == []
    assert made_of_others([Case("SER1", (other,), None)], lambda case: mask) == ["SER1"]
    assert made_of_others([Case("SER2", (other,), None)], lambda case: tmp_path / "SER2.nii.gz") == []
