"""Commands that train."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from samunet.commands.flags import DATASET, PLANS, SEED, duration, finite
from samunet.commands.table import Flag, Group, Switch, as_typed, command
from samunet.errors import UsageError


def _size(text: str) -> int:
    from samunet.training.options import parse_size

    return parse_size(text)


def _share(text: str) -> float | str:
    return text if text == "auto" else finite(text)


_LENGTHS = "90s, 20m, 1.5h, 2h30m, or seconds"


@command(
    "train folds; the same command again goes on where it stopped",
    DATASET,
    Flag("configuration", help="for example 2d"),
    Flag(
        "folds",
        also=("fold",),
        metavar="fold",
        nargs="+",
        help="0 to 4, one or several; or all, which is one model trained on every case",
    ),
    PLANS,
    Flag("-encoder", help="vit_b, vit_l, vit_h, vit_t or small, as planned (default: what this machine allows)"),
    Flag("--checkpoint", type=Path, metavar="FILE", help="pretrained weights: any file in SAM's layout"),
    Flag(
        "--decoder_from",
        metavar="FILE",
        help="where the file after --checkpoint holds an image encoder alone: a whole checkpoint for the rest, an "
        "encoder's name, or random (default: the encoder's published one)",
    ),
    Switch("--random_weights", help="do not start from the bundled weights"),
    Flag(
        "--pixel_statistics",
        metavar="NAME",
        help="sam or medsam: how the input of the file after --checkpoint was normalised when it was trained",
    ),
    Group(
        "length of the training (one of them; default: the plan's)",
        Flag("--epochs", type=int, metavar="N", help="passes over the training slices, of 100 to 250 updates each"),
        Flag("--iterations", type=int, metavar="N", help="updates; repeatable to the digit on one CPU"),
        Flag(
            "--time_budget",
            dest="seconds",
            type=duration,
            metavar="T",
            help=f"time in the training loop: {_LENGTHS}; the validation comes after it",
        ),
    ),
    Flag("--batch_size", type=int, metavar="N", help="images per update (default: the plan's)"),
    Flag("--lr", dest="learning_rate", type=finite, help="peak learning rate (default: the plan's)"),
    Flag(
        "--feature_cache",
        type=_size,
        metavar="SIZE",
        help="keep what a frozen encoder computes on disk, up to SIZE, e.g. 20GB",
    ),
    Group(
        None,
        Flag(
            "--num_cases",
            type=int,
            metavar="N",
            help="train on N of the fold's cases, drawn by the seed and spread over patients; fewer are a part of more",
        ),
        Flag(
            "--cases",
            type=Path,
            metavar="FILE",
            help="train on those of the fold's cases that a file names: JSON (a list, or one under cases), or text "
            "with a name a line; what the fold validates stays as it is",
        ),
    ),
    Flag(
        "--augmentation",
        choices=("standard", "strong"),
        help="how much training images are changed: as nnU-Net does, or more, which may help where few cases are "
        "learnt by heart (default: as planned, which is standard)",
    ),
    Flag(
        "--synthesis",
        type=_share,
        metavar="SHARE",
        help="share of the training images, 0 to 1, that get something new made of the labelled slices: pasted "
        "lesions, exchanged textures, carved-in foreground; auto: half with up to 500 slices, none from 5000 on "
        "(default: as planned, which is none)",
    ),
    SEED,
    Flag(
        "--num_workers",
        type=int,
        metavar="N",
        help="processes that prepare batches (default: none on two cores or fewer); the batches are the same with any",
    ),
    Flag(
        "-device",
        default="auto",
        also=("devices",),
        help="cpu, cuda, cuda:1 or mps (default: a GPU if there is one); cuda:0,cuda:1 trains two folds at a time",
    ),
    Flag(
        "--folds_at_once",
        type=int,
        metavar="N",
        help="folds that a CPU trains at a time, each with its share of the threads (default: one per thread, where "
        "memory allows)",
    ),
    Flag(
        "--pretrained",
        "-pretrained_weights",
        dest="pretrained",
        type=Path,
        metavar="FILE",
        help="start from another training's model file; tensors that fit are taken over, and their number is printed",
    ),
    Switch("--c", help="accepted for nnU-Net users: resuming is the default"),
    Switch("--val", dest="validation_only", help="only predict and score the validation cases again"),
    Switch(
        "--val_best", dest="validate_best", help="also predict and score them with checkpoint_best, to validation_best"
    ),
    Switch("--npz", dest="save_probabilities", help="keep the validation's probabilities as CASE.npz"),
    Switch("--overwrite", help="delete these folds and train them anew"),
    description="Train folds; predict the validation cases of each and score them. Resumes by itself.",
    examples=(
        "samunet_train 027 2d 0",
        "samunet_train 027 2d 0 1 2 3 4",
        "samunet_train 027 2d all --time_budget 1.5h",
    ),
    see="[How a training goes](how_commands_work.md#how-a-training-goes)",
    go_on="the same command (without --overwrite) goes on from here",
    calls=("train", "train_folds"),
)
def train(dataset: str, folds: list[str], device: str, c: bool, num_workers: int | None, **given: Any) -> None:
    from samunet import api
    from samunet.training.folds import format_results
    from samunet.workers import default_workers

    wrong = [fold for fold in folds if fold != "all" and not fold.isdecimal()]
    if wrong:
        raise UsageError(f"{wrong[0]!r} is no fold", "use numbers (0 to 4) or all, for example: 0 1 2 3 4")
    given["num_workers"] = default_workers() if num_workers is None else num_workers
    devices = [name.strip() for name in device.split(",")]
    numbers = [int(fold) if fold.isdecimal() else fold for fold in folds]
    folders = api.train_folds(dataset, folds=numbers, devices=devices, device=devices[0], **given)
    if len(folders) > 1:
        print(format_results(folders))
    for folder in folders:
        print(f"model: {folder}")
    print("\n".join(_next_steps(dataset, folders)))


def _next_steps(dataset: str, folders: list[Path]) -> list[str]:
    """Lines that say what to type after folds were trained; each command runs as it is printed."""
    from samunet import paths
    from samunet.dataset.splits import FILE_NAME, read_splits
    from samunet.models.folder import ModelFolder
    from samunet.selection.crossval import unfinished

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
    return [f"next: {as_typed(model.training_call(missing), train.parser())}", told, f"next: {compare}"]
