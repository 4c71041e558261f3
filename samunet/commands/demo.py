"""``samunet_demo``: the whole pipeline on example data that the command makes itself, in a folder of its own."""

from __future__ import annotations

import logging
import os
import shlex
from pathlib import Path

from samunet.commands import run_command
from samunet.commands.table import Flag, command

_DATASET = "Dataset999_Phantoms"
_TRAINING_CASES, _TEST_CASES = 16, 4


@command(
    "the whole pipeline on example data that the command makes itself, in a folder of its own",
    Flag("--folder", type=Path, default=Path("demo_samunet"), help="where (default: demo_samunet)"),
    Flag("--time_budget", default="4m", metavar="T", help="training time (default: 4m)"),
    Flag("--seed", type=int, default=0, help="of the example data (default: 0)"),
    description="Make an example dataset (Dataset999_Phantoms: 16 training and 4 test volumes, drawn, not real), "
    "plan, train, predict, evaluate and report: a few minutes. Sets the three folders itself, inside its own, and "
    "prints each command as you would type it.",
    examples=("samunet_demo",),
)
def demo(folder: Path, time_budget: str, seed: int) -> int:
    from samunet import api
    from samunet.dataset.outputs import check_place

    folder = check_place(folder).resolve()
    for name in ("raw", "preprocessed", "results"):
        (folder / name).mkdir(parents=True, exist_ok=True)
        os.environ[f"samunet_{name}"] = str(folder / name)
    raw, predictions = folder / "raw" / _DATASET, folder / "predictions"
    print(f"making {_TRAINING_CASES} training and {_TEST_CASES} test cases in {raw}")
    api.make_phantoms(raw, num_training=_TRAINING_CASES, num_test=_TEST_CASES, seed=seed)
    steps = [
        ["samunet_plan_and_preprocess", "-d", "999"],
        ["samunet_train", "999", "2d", "0", "--time_budget", time_budget, "--overwrite"],
        ["samunet_predict", "-i", str(raw / "imagesTs"), "-o", str(predictions), "-d", "999"],
        ["samunet_evaluate_folder", str(raw / "labelsTs"), str(predictions)],
        ["samunet_report", str(predictions)],
    ]
    verbose = ["--verbose"] if logging.getLogger("samunet").isEnabledFor(logging.DEBUG) else []
    for name, *words in steps:
        print(f"\n$ {shlex.join([name, *words])}", flush=True)
        status = run_command(name, [*words, *verbose])
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
    from samunet.report.overlays import save_overlay

    description = read_description(raw)
    ending = description.file_ending
    reader = reader_for(ending)
    for case in list_cases(raw / "imagesTs", description).values():
        image = reader.read_image(case.images).array
        prediction, _ = reader.read_label(predictions / f"{case.name}{ending}")
        reference, _ = reader.read_label(raw / "labelsTs" / f"{case.name}{ending}")
        save_overlay(image, prediction, folder / f"{case.name}.png", reference, description.labels.names)
    return folder
