"""``samunet_demo``: the whole pipeline on example data that the command makes itself, in a folder of its own."""

from __future__ import annotations

import argparse
import os
import shlex
from pathlib import Path

from samunet.commands.common import CommandParser, add_common_flags, run_command

_DATASET = "Dataset999_Phantoms"
_TRAINING_CASES, _TEST_CASES = 16, 4


def build_parser() -> argparse.ArgumentParser:
    """The command's flags."""
    parser = CommandParser(
        "samunet_demo", description="Make an example dataset, plan, train, predict and evaluate: a few minutes."
    )
    parser.add_argument("--folder", type=Path, default=Path("demo_samunet"), help="where (default: demo_samunet)")
    parser.add_argument("--time_budget", default="4m", metavar="T", help="training time (default: 4m)")
    parser.add_argument("--seed", type=int, default=0, help="of the example data (default: 0)")
    add_common_flags(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    return run_command(build_parser(), _run, argv)


def _run(arguments: argparse.Namespace) -> int:
    from samunet.commands import evaluate_folder, phantoms, plan_and_preprocess, predict, report, train
    from samunet.dataset.outputs import check_place

    folder = check_place(arguments.folder).resolve()
    for name in ("raw", "preprocessed", "results"):
        (folder / name).mkdir(parents=True, exist_ok=True)
        os.environ[f"samunet_{name}"] = str(folder / name)
    raw = folder / "raw" / _DATASET
    print(f"making {_TRAINING_CASES} training and {_TEST_CASES} test cases in {raw}")
    phantoms.make_phantoms(raw, num_training=_TRAINING_CASES, num_test=_TEST_CASES, seed=arguments.seed)
    predictions = folder / "predictions"
    steps = [
        (plan_and_preprocess, "samunet_plan_and_preprocess", ["-d", "999"]),
        (train, "samunet_train", ["999", "2d", "0", "--time_budget", arguments.time_budget, "--overwrite"]),
        (predict, "samunet_predict", ["-i", str(raw / "imagesTs"), "-o", str(predictions), "-d", "999"]),
        (evaluate_folder, "samunet_evaluate_folder", [str(raw / "labelsTs"), str(predictions)]),
        (report, "samunet_report", [str(predictions)]),
    ]
    for module, command, flags in steps:
        print(f"\n$ {shlex.join([command, *flags])}", flush=True)
        status = module.main([*flags, "--verbose"] if arguments.verbose else flags)
        if status:
            return status
    overlays = _draw_overlays(raw, predictions, folder / "overlays")
    model = next((folder / "results" / _DATASET).glob("*/fold_0"))
    print(f"\nmasks:    {predictions}\nplot:     {model / 'progress.png'}\noverlays: {overlays}")
    print(f"report:   {predictions / 'report.html'} (open it in a browser)")
    return 0


def _draw_overlays(raw: Path, predictions: Path, folder: Path) -> Path:
    from samunet.dataset.description import read_description
    from samunet.dataset.layout import list_cases
    from samunet.imageio.registry import reader_for
    from samunet.report.case_overlay import save_overlay

    description = read_description(raw)
    ending = description.file_ending
    reader = reader_for(ending)
    for case in list_cases(raw / "imagesTs", description).values():
        image = reader.read_image(case.images).array
        prediction, _ = reader.read_label(predictions / f"{case.name}{ending}")
        reference, _ = reader.read_label(raw / "labelsTs" / f"{case.name}{ending}")
        save_overlay(image, prediction, folder / f"{case.name}.png", reference, description.labels.names)
    return folder
