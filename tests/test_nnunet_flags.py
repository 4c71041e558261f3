"""The page "You know nnU-Net: flag by flag": each flag exists, or gets the sentence that the page has."""

import re
from pathlib import Path

import pytest

from samunet.commands import build_parser, run_command
from samunet.commands.table import CommandParser
from samunet.errors import UsageError

PAGE = (Path(__file__).parents[1] / "documentation" / "guide" / "nnunet_flags.md").read_text(encoding="utf-8")
ROWS = [
    (command, flag, row.split(" | ")[1].removesuffix(" |"))
    for command, table in re.findall(r"^## samunet_(\w+)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    for row in table.splitlines()
    for flag in re.findall(r"`(-+\w+)", row.split(" | ")[0])
]
# What nnU-Net 2.8.1 has; -h and positional arguments apart.
NNUNET = {
    "plan_and_preprocess": "-d -fpe -npfp --verify_dataset_integrity --no_pp --clean -pl -gpu_memory_target "
    "-preprocessor_name -overwrite_target_spacing -overwrite_plans_name -c -np --verbose --no_pbar",
    "extract_fingerprint": "-d -fpe -np --verify_dataset_integrity --clean --verbose --no_pbar",
    "plan_experiment": "-d -pl -gpu_memory_target -preprocessor_name -overwrite_target_spacing -overwrite_plans_name",
    "preprocess": "-d -plans_name -c -np --verbose --no_pbar",
    "train": "-tr -p -pretrained_weights -num_gpus --npz --c --val --val_best --disable_checkpointing -device "
    "--use_compressed",
    "predict": "-i -o -d -c -p -tr -f -step_size --disable_tta --verbose --save_probabilities --continue_prediction "
    "-chk -npp -nps -prev_stage_predictions -num_parts -part_id -device --disable_progress_bar --not_on_device",
    "predict_from_modelfolder": "-m -f -step_size --disable_tta --verbose --save_probabilities --continue_prediction "
    "--c -chk -npp -nps -prev_stage_predictions -device --disable_progress_bar --not_on_device",
    "find_best_configuration": "-p -c -tr -np -f --disable_ensembling --no_overwrite",
    "accumulate_crossval_results": "-c -o -f -p -tr",
    "determine_postprocessing": "-i -ref -plans_json -dataset_json -np --remove_postprocessed",
    "apply_postprocessing": "-i -o -pp_pkl_file -np -plans_json -dataset_json",
    "ensemble": "-i -o -np --save_npz",
    "evaluate_folder": "-djfile -pfile -o -np --chill",
    "evaluate_simple": "-l -il -o -np --chill",
    "plot_overlay_pngs": "-d -o -np -channel_idx --use_raw -p -c -overlay_intensity",
    "export_model_to_zip": "-d -o -c -tr -p -f -chk --not_strict --exp_cv_preds",
    "move_plans_between_datasets": "-s -t -sp -tp",
    "convert_MSD_dataset": "-i -overwrite_id -np",
}


@pytest.mark.parametrize("name", NNUNET)
def test_the_page_has_every_flag_of_nnunet(name):
    assert set(NNUNET[name].split()) <= {flag for of, flag, _ in ROWS if of == name}


@pytest.mark.parametrize(("name", "flag", "said"), ROWS, ids=[f"{name} {flag}" for name, flag, _ in ROWS])
def test_each_flag_does_what_the_page_says(name, flag, said, capsys):
    if not said.startswith("not there: "):
        assert flag in build_parser(f"samunet_{name}")._option_string_actions
        return
    assert run_command(f"samunet_{name}", [flag, "x"]) == 2
    printed = capsys.readouterr().err
    sentence, hint = said.replace("`", "").removeprefix("not there: ").rsplit("; ", 1)
    assert printed == f"error: nnU-Net's {flag} is not there: {sentence}\n  -> {hint}\n"


@pytest.mark.parametrize(
    ("name", "words", "text"),
    [
        ("train", ["1", "2d", "0", "-pfoo"], "samunet_train has no flag -pfoo"),
        ("train", ["1", "2d", "0", "--time", "5m"], "samunet_train has no flag --time\n"),
        ("train", ["1", "2d", "0", "--time-budget", "5m"], "did you mean --time_budget?"),
        ("train", ["1", "2d", "0", "-overwrite"], "did you mean --overwrite?"),
        ("predict", ["-iimages", "-o", "preds"], "samunet_predict has no flag -iimages"),
        ("report", ["027", "-n3"], "samunet_report has no flag -n3"),
        ("preprocess", ["-d", "1", "-np", "8", "4", "8"], "-np takes one number, for all configurations, and got 3\n"),
    ],
)
def test_flags_are_written_out(name, words, text, capsys):
    assert run_command(f"samunet_{name}", words) == 2
    assert text in capsys.readouterr().err


def test_values_that_look_like_flags_are_values_where_they_can_be():
    parser = CommandParser("x")
    parser.add_argument("words", nargs="*")
    parser.add_argument("--remap")
    parser.add_argument("-d")
    assert parser.parse_args(["--remap=-1=0", "-d=a", "-2", "--", "-file"]).words == ["-2", "-file"]
    with pytest.raises(UsageError, match="x has no flag -file"):
        parser.parse_args(["-file"])


def test_pretrained_weights_and_names_of_checkpoints():
    train = build_parser("samunet_train").parse_args(["1", "2d", "0", "-pretrained_weights", "a.safetensors"])
    assert (str(train.pretrained), train.plans_name) == ("a.safetensors", "samunetPlans")
    for text in ("best", "checkpoint_best.pth", "checkpoint_best", "checkpoint_best.safetensors"):
        assert build_parser("samunet_predict").parse_args(["-i", "a", "-o", "b", "-chk", text]).checkpoint == "best"
    export = build_parser("samunet_export_model_to_zip")
    words = ["-d", "1", "-o", "a.zip", "-chk", "checkpoint_final.pth", "best"]
    assert export.parse_args(words).checkpoints == ["final", "best"]
