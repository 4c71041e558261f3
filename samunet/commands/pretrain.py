"""``samunet_pretrain``: further training of an encoder on the images of a dataset, in pieces."""

from __future__ import annotations

import argparse
import logging
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

from samunet.commands.flags import DEVICE, PLANS_NAME, SEED, finite
from samunet.commands.table import Flag, Group, Switch, command
from samunet.errors import UsageError
from samunet.training.pretraining.options import PretrainingOptions

log = logging.getLogger(__name__)


@command(
    "any encoder on the images of a dataset, without labels; in pieces",
    Flag("-d", metavar="ID", help="a preprocessed dataset, whose images in imagesTr and imagesTs are seen"),
    Flag(
        "-encoder",
        help="vit_b, vit_l, vit_h, vit_t or small, as planned (default: that of --checkpoint or of the plans; "
        "else SAM where there is a GPU and its file, and small otherwise)",
    ),
    Flag("-c", metavar="CONFIGURATION", help="whose slices and input are used (default: 2d)"),
    Flag("-p", metavar="NAME", help=f"plans' name (default: {PLANS_NAME})"),
    Switch("--no_test_images", help="leave out imagesTs"),
    Flag(
        "--checkpoint",
        type=Path,
        metavar="FILE",
        help="weights in SAM's layout to start from (default: the encoder's own)",
    ),
    Flag("--out", type=Path, metavar="FOLDER", help="for checkpoints, log and weights (default: among the results)"),
    Group(
        None,
        Flag("--time_budget", metavar="T", help="length of this piece: 90s, 20m, 1.5h"),
        Flag("--iterations", type=int, metavar="N", help="updates over all pieces, or of the final decay"),
    ),
    Flag("--objective", choices=["mae"], help="what the encoder is asked: mae, to reconstruct what is hidden"),
    Switch("--final_decay", help="bring the rate to zero over this piece"),
    Flag("--batch_size", type=int, metavar="N", help="images per update (default: as memory allows, at most 12)"),
    Flag("--lr", type=finite, help="learning rate (default: 1e-4)"),
    SEED,
    DEVICE,
    description="Further train an encoder on a dataset's own images, without labels; goes on from what the folder "
    "holds.",
    examples=("samunet_pretrain -d 027 --objective mae",),
    see="[How a pretraining goes](how_commands_work.md#how-a-pretraining-goes)",
)
def pretrain(**given: Any) -> None:
    arguments = argparse.Namespace(**given)
    _check(arguments)
    from samunet import paths
    from samunet.dataset.layout import find_dataset
    from samunet.dataset.outputs import check_holdings, check_place
    from samunet.training.pretraining import run
    from samunet.training.pretraining.own_images import OBJECTIVE, OwnImages, pretrain_without_end_given
    from samunet.workers import default_workers

    dataset = find_dataset(arguments.d)
    if arguments.out:  # before images are stored
        check_holdings(check_place(arguments.out))
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
        weights = run.pretrain(folder, _options(arguments, given), work)
    else:
        # Looked at before their number is told: --batch_size 0 has no length.
        options = _options(arguments, given | {"iterations": 1})
        options = replace(options, iterations=work.updates(options.batch_size))
        log.info("%d updates of %d images; another length: --time_budget T", options.iterations, options.batch_size)
        weights = pretrain_without_end_given(folder, options, work)
    print(f"weights: {weights}")
    if weights.name == run.WEIGHTS_SO_FAR.format(work.encoder):
        print("going on replaces them, and a model that was begun with them needs them as they are: copy them before")
    training = ["samunet_train", arguments.d, arguments.c or "2d", "0", *(["-p", arguments.p] if arguments.p else [])]
    print("next:", shlex.join([*training, "-encoder", work.encoder, "--checkpoint", str(weights)]))


def _check(arguments: argparse.Namespace) -> None:
    if not arguments.d:
        raise UsageError(
            "samunet_pretrain needs a dataset, on whose images an encoder is further trained",
            "name it: -d ID. What made the weights in the package is tools/bundled_weights in samunet's source",
        )
    if arguments.final_decay and not (arguments.time_budget or arguments.iterations is not None):
        raise UsageError("the length of the decay is not clear", "give either --time_budget or --iterations")


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
