"""Remedies that messages print do what is missing."""

import pytest

from samunet.commands import build_parser, run_command
from samunet.commands.typed import as_typed
from samunet.dataset.cases import Case
from samunet.dataset.outputs import finish
from samunet.errors import Blank, SamunetError, argument, call
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
        ("other Plans", "samunet_plan_and_preprocess -d 021 -overwrite_plans_name 'other Plans'"),
    ],
)
def test_plans_that_are_missing_are_made_under_their_name(tmp_path, name, remedy):
    with pytest.raises(SamunetError) as raised:
        plans_called(name, tmp_path / "Dataset021_A")
    assert as_typed(raised.value.hint, build_parser("samunet_train")) == remedy


@pytest.mark.parametrize(
    ("text", "typed"),
    [
        (f"use {argument('device', 'cpu')}", "use -device cpu"),
        (f"{argument('step_size')} must be 0.01 or more", "-step_size must be 0.01 or more"),
        ("`overwrite=True` trains anew, `validation_only=True` validates", "--overwrite trains anew, --val validates"),
        ("another seed: `seed=N, overwrite=True`", "another seed: --seed N --overwrite"),
        ("`tta=False` and `lora={'rank': 8, 'dora': True}`", "--disable_tta and -lora_rank 8 --dora"),
        ("`lora.rank` must be 1 or more", "-lora_rank must be 1 or more"),
        ("by `api.predict`", "by samunet_predict"),
        ("`api.train(..., validation_only=True)`", "samunet_train … --val"),
        ("`api.train(27, '2d', 0, overwrite=True)`", "samunet_train 27 2d 0 --overwrite"),
        (call("train_folds", 27, "2d", [1, 2], plans_name="my plans"), "samunet_train 27 2d 1 2 -p 'my plans'"),
        (call("evaluate", predictions=Blank("MASKS"), references="a b"), "samunet_evaluate_folder 'a b' MASKS"),
        (call("evaluate", predictions="a", references="b", labels=[1, 2]), "samunet_evaluate_simple b a -l 1 2"),
        (
            call("predict", "a`b", Blank("OUT"), model_folder="m"),
            "samunet_predict_from_modelfolder -i 'a`b' -o OUT -m m",
        ),
        ("a file called `x`, `f(1)` and `no code", "a file called `x`, `f(1)` and `no code"),
    ],
)
def test_calls_and_arguments_are_turned_into_what_is_typed(text, typed):
    assert as_typed(text, build_parser("samunet_train")) == typed


@pytest.mark.parametrize(
    ("command", "flag"),
    [("samunet_train", "--overwrite"), ("samunet_export_model_to_zip", "--force"), ("samunet_info", "--overwrite")],
)
def test_an_argument_is_a_flag_of_the_command_that_runs(command, flag):
    assert as_typed("add `overwrite=True`", build_parser(command)) == f"add {flag}"


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
