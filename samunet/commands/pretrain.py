"""``samunet_pretrain``: the small encoder on synthetic images, or any encoder on the images of a dataset; in pieces."""

from __future__ import annotations

import argparse
import logging
import shlex
from dataclasses import replace
from pathlib import Path

from samunet.commands.flags import DEVICE, PLANS_NAME, SEED, finite
from samunet.commands.table import Flag, Group, Switch, command
from samunet.errors import UsageError
from samunet.pretraining.options import OBJECTIVES, PretrainingOptions

log = logging.getLogger(__name__)


@command(
    "the small encoder on synthetic images, or any encoder on the images of a dataset; in pieces",
    Group(
        "on images of your own",
        Flag("-d", metavar="ID", help="a preprocessed dataset, whose images in imagesTr and imagesTs are seen"),
        Flag(
            "-encoder",
            help="vit_b, vit_l, vit_h, vit_t or small, as planned (default: that of --checkpoint or of the plans; "
            "else SAM where there is a GPU and its file, and small otherwise)",
        ),
        Flag("-c", metavar="CONFIGURATION", help="whose slices and input are used (default: 2d)"),
        Flag("-p", metavar="NAME", help=f"plans' name (default: {PLANS_NAME})"),
        Switch("--no_test_images", help="leave out imagesTs"),
    ),
    Flag(
        "--checkpoint",
        type=Path,
        metavar="FILE",
        help="weights to start from: what samunet_pretrain wrote, or with -d any file in SAM's layout (default: "
        "random; with -d the encoder's own)",
    ),
    Flag("--out", type=Path, metavar="FOLDER", help="for checkpoints, log and weights (with -d: among the results)"),
    Group(
        None,
        Flag("--time_budget", metavar="T", help="length of this piece: 90s, 20m, 1.5h"),
        Flag("--iterations", type=int, metavar="N", help="updates over all pieces, or of the final decay"),
    ),
    Flag(
        "--objective",
        choices=OBJECTIVES,
        help="what the encoder is asked: dense (do two pixels lie in the same region?), prompt (a click or a box "
        "gives the mask), mae (reconstruct what is hidden) or mix (default: mix; with -d: mae)",
    ),
    Switch("--final_decay", help="bring the rate to zero over this piece"),
    Flag("--batch_size", type=int, metavar="N", help="images of the largest size per update (default: 12)"),
    Flag(
        "--image_size",
        type=int,
        nargs="+",
        metavar="PX",
        help="sides of the images, in turn; of smaller images a batch has as many more (default: 112 224)",
    ),
    Flag("--lr", type=finite, help="learning rate (default: 5e-4; with -d and weights: 1e-4)"),
    SEED,
    DEVICE,
    description="Pretrain the small encoder on randomised synthetic images, or with -d further train any encoder on a "
    "dataset's own images, without labels; goes on from what the folder holds.",
    examples=(
        "samunet_pretrain --out pretraining --time_budget 2h",
        "samunet_pretrain --out pretraining --time_budget 20m --final_decay",
        "samunet_pretrain -d 027 --objective mae",
    ),
    see="[How a pretraining goes](how_commands_work.md#how-a-pretraining-goes)",
)
def pretrain(arguments: argparse.Namespace) -> None:
    _check(arguments)
    if arguments.d:
        _run_on_own_images(arguments)
        return
    from samunet.pretraining import run
    from samunet.pretraining.work import SyntheticImages

    options = _options(arguments, {"image_sizes": arguments.image_size and tuple(arguments.image_size)})
    weights = run.pretrain(arguments.out, options, SyntheticImages(arguments.checkpoint))
    print(f"weights: {weights}")
    if not arguments.final_decay:
        start = ["--checkpoint", str(arguments.checkpoint)] if arguments.checkpoint else []
        decay = ["samunet_pretrain", "--out", str(arguments.out), *start, "--final_decay", "--time_budget", "30m"]
        print(f"next: {shlex.join(decay)}\n(or the same command again, to go on at a constant rate)")


def _run_on_own_images(arguments: argparse.Namespace) -> None:
    from samunet import paths
    from samunet.dataset.layout import find_dataset
    from samunet.pretraining.own_images import OBJECTIVE, OwnImages, pretrain_without_end_given
    from samunet.pretraining.run import WEIGHTS_SO_FAR, pretrain
    from samunet.workers import default_workers

    dataset = find_dataset(arguments.d)
    work = OwnImages(
        dataset, arguments.encoder, arguments.checkpoint, arguments.c or "2d", arguments.p or PLANS_NAME,
        test_images=not arguments.no_test_images, device=arguments.device, num_workers=default_workers(),
    )  # fmt: skip
    folder = arguments.out or paths.results_folder() / dataset / f"pretraining_{work.encoder}"
    given = {
        "objective": OBJECTIVE,
        "batch_size": work.batch_size() if arguments.batch_size is None else arguments.batch_size,
        "image_sizes": (max(work.network.input_shape),),
        "learning_rate": work.learning_rate() if arguments.lr is None else arguments.lr,
    }
    if arguments.time_budget or arguments.iterations is not None:
        weights = pretrain(folder, _options(arguments, given), work)
    else:
        # Looked at before their number is told: --batch_size 0 has no length.
        options = _options(arguments, given | {"iterations": 1})
        options = replace(options, iterations=work.updates(options.batch_size))
        log.info("%d updates of %d images; another length: --time_budget T", options.iterations, options.batch_size)
        weights = pretrain_without_end_given(folder, options, work)
    print(f"weights: {weights}")
    if weights.name == WEIGHTS_SO_FAR.format(work.encoder):
        print("going on replaces them, and a model that was begun with them needs them as they are: copy them before")
    training = ["samunet_train", arguments.d, arguments.c or "2d", "0", *(["-p", arguments.p] if arguments.p else [])]
    print("next:", shlex.join([*training, "-encoder", work.encoder, "--checkpoint", str(weights)]))


def _check(arguments: argparse.Namespace) -> None:
    """Refuse flags that do not go together."""
    length = arguments.time_budget or arguments.iterations is not None
    if arguments.d:
        if arguments.objective not in (None, "mae"):
            others = ", ".join(name for name in OBJECTIVES if name != "mae")
            raise UsageError(
                f"--objective {arguments.objective} needs synthetic images, whose regions are known ({others})",
                "use --objective mae with -d, or leave out -d",
            )
        if arguments.image_size is not None:
            raise UsageError(
                "with -d, the plans tell the size of the images", "choose a configuration, such as -c 2d_448"
            )
        if arguments.final_decay and not length:
            raise UsageError("the length of the decay is not clear", "give either --time_budget or --iterations")
        return
    alone = [f"-{flag}" for flag in ("encoder", "c", "p") if getattr(arguments, flag) is not None]
    if alone or arguments.no_test_images:
        flag = alone[0] if alone else "--no_test_images"
        raise UsageError(f"{flag} belongs to a dataset's own images", "name the dataset: -d ID, or leave out the flag")
    if arguments.out is None or not length:
        lacking = "--out FOLDER" if arguments.out is None else "--time_budget T"
        raise UsageError("synthetic images need a folder and a length", f"give {lacking}, or a dataset: -d ID")


def _options(arguments: argparse.Namespace, given: dict) -> PretrainingOptions:
    """What was given on the command line, and defaults for the rest."""
    from samunet.training.schedule import parse_duration

    chosen = {
        "objective": arguments.objective,
        "iterations": arguments.iterations,
        "seconds": parse_duration(arguments.time_budget) if arguments.time_budget else None,
        "batch_size": arguments.batch_size,
        "learning_rate": arguments.lr,
        "final_decay": arguments.final_decay,
        "seed": arguments.seed,
        "device": arguments.device,
    } | given
    return PretrainingOptions(**{key: value for key, value in chosen.items() if value is not None})
