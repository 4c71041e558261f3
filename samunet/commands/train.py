"""``samunet_train``: train folds; the same command again goes on where it stopped."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from samunet.commands.common import CommandParser, add_common_flags, finite, run_command
from samunet.plans import DEFAULT_PLANS_NAME


def build_parser() -> argparse.ArgumentParser:
    """The command's flags."""
    parser = CommandParser("samunet_train", description="Train folds, one after the other; resumes by itself.")
    parser.add_argument("dataset", help="27, 027 or Dataset027_ACDC")
    parser.add_argument("configuration", help="for example 2d")
    parser.add_argument(
        "fold", nargs="+", help="0 to 4, one or several; or all, which is one model trained on every case"
    )
    parser.add_argument(
        "-p", default=DEFAULT_PLANS_NAME, metavar="NAME", help=f"plans' name (default: {DEFAULT_PLANS_NAME})"
    )
    parser.add_argument(
        "-encoder", help="vit_b, vit_l, vit_h, vit_t or small, as planned (default: what this machine allows)"
    )
    parser.add_argument("--checkpoint", type=Path, metavar="FILE", help="base weights: any file in SAM's layout")
    parser.add_argument("--random_weights", action="store_true", help="do not start from the bundled weights")
    parser.add_argument(
        "--pixel_statistics", metavar="NAME", help="sam or medsam: what the file after --checkpoint was trained with"
    )
    length = parser.add_argument_group("length of the training (one of them; default: the plan's)")
    length.add_argument("--epochs", type=int, metavar="N")
    length.add_argument("--iterations", type=int, metavar="N", help="updates; repeatable to the digit on one CPU")
    length.add_argument("--time_budget", metavar="T", help="time in the training loop: 90s, 20m, 1.5h, 2h30m")
    parser.add_argument("--batch_size", type=int, metavar="N", help="images per step (default: the plan's)")
    parser.add_argument("--lr", type=finite, help="peak learning rate (default: the plan's)")
    parser.add_argument(
        "--feature_cache",
        metavar="SIZE",
        help="keep what a frozen encoder computes on disk, up to SIZE, e.g. 20GB",
    )
    parser.add_argument("--num_cases", type=int, metavar="N", help="train on N of the fold's cases, drawn by the seed")
    parser.add_argument("--seed", type=int, default=12345, help="all randomness depends on it (default: 12345)")
    parser.add_argument(
        "--num_workers",
        type=int,
        metavar="N",
        help="processes that prepare batches (default: none on two cores or fewer)",
    )
    parser.add_argument(
        "-device",
        default="auto",
        help="cpu, cuda, cuda:1 or mps (default: a GPU if there is one); cuda:0,cuda:1 trains two folds at a time",
    )
    parser.add_argument(
        "--pretrained",
        "-pretrained_weights",
        type=Path,
        metavar="FILE",
        help="start from another training's model file",
    )
    parser.add_argument("--c", action="store_true", help="accepted for nnU-Net users: resuming is the default")
    parser.add_argument("--val", action="store_true", help="only predict and score the validation cases again")
    parser.add_argument(
        "--val_best", action="store_true", help="also predict and score them with checkpoint_best, to validation_best"
    )
    parser.add_argument("--npz", action="store_true", help="keep the validation's probabilities as CASE.npz")
    parser.add_argument("--overwrite", action="store_true", help="train these folds anew")
    add_common_flags(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    return run_command(build_parser(), _run, argv, go_on="the same command (without --overwrite) goes on from here")


def _run(arguments: argparse.Namespace) -> None:
    from samunet import api
    from samunet.errors import UsageError
    from samunet.training.folds import format_results
    from samunet.training.options import parse_size
    from samunet.training.schedule import parse_duration
    from samunet.workers import default_workers

    wrong = [fold for fold in arguments.fold if fold != "all" and not fold.isdecimal()]
    if wrong:
        raise UsageError(f"{wrong[0]!r} is no fold", "use numbers (0 to 4) or all, for example: 0 1 2 3 4")
    devices = [device.strip() for device in arguments.device.split(",")]
    workers = arguments.num_workers
    options = api.TrainingOptions(
        encoder=arguments.encoder,
        checkpoint=arguments.checkpoint,
        pixel_statistics=arguments.pixel_statistics,
        epochs=arguments.epochs,
        iterations=arguments.iterations,
        seconds=parse_duration(arguments.time_budget) if arguments.time_budget else None,
        batch_size=arguments.batch_size,
        learning_rate=arguments.lr,
        seed=arguments.seed,
        num_workers=default_workers() if workers is None else workers,
        device=devices[0],
        feature_cache=parse_size(arguments.feature_cache) if arguments.feature_cache else None,
        num_cases=arguments.num_cases,
        pretrained=arguments.pretrained,
        random_weights=arguments.random_weights,
        overwrite=arguments.overwrite,
        validation_only=arguments.val,
        validate_best=arguments.val_best,
        save_probabilities=arguments.npz,
    )
    folds = [int(fold) if fold.isdecimal() else fold for fold in arguments.fold]
    folders = api.train_folds(arguments.dataset, arguments.configuration, folds, options, arguments.p, devices=devices)
    if len(folders) > 1:
        print(format_results(folders))
    for folder in folders:
        print(f"model: {folder}")
    print("\n".join(_next_steps(arguments.dataset, folders)))


def _next_steps(dataset: str, folders: list[Path]) -> list[str]:
    """Lines that say what to type after folds were trained; each command runs as it is printed."""
    from samunet import paths
    from samunet.dataset.splits import FILE_NAME, read_splits
    from samunet.models.folder import ModelFolder
    from samunet.selection.crossval import training_command, unfinished

    model = ModelFolder(folders[0].parent)
    name = model.path.parent.name
    if len(folders) == 1:
        raw = next((folder / name / "imagesTs" for folder in paths.known_folders()), Path("imagesTs"))
        _, plans_name, configuration = model.path.name.split("__")
        words = ["-o", "preds", "-d", dataset, "-c", configuration, "-p", plans_name]
        if raw.is_dir():
            return [f"next: {shlex.join(['samunet_predict', '-i', str(raw), *words])}"]
        return [f"next, with a folder of new images in place of FOLDER: samunet_predict -i FOLDER {shlex.join(words)}"]
    splits = read_splits(paths.preprocessed_folder() / name / FILE_NAME)
    compare = shlex.join(["samunet_find_best_configuration", dataset])
    missing = unfinished(model, range(len(splits)))
    if not missing:
        return [f"next: {compare}"]
    told = "(with the flags of this training), and when all folds are trained:"
    return [f"next: {training_command(model, missing)}", told, f"next: {compare}"]
