"""``samunet_pretrain``: further training of an encoder on the images of a dataset, in pieces."""

from __future__ import annotations

import argparse
import logging
import shlex
from dataclasses import replace
from pathlib import Path

from samunet.commands.common import CommandParser, add_common_flags, finite, run_command
from samunet.plans import DEFAULT_PLANS_NAME
from samunet.training.pretraining.options import PretrainingOptions

log = logging.getLogger(__name__)


def build_parser() -> argparse.ArgumentParser:
    """The command's flags."""
    parser = CommandParser(
        "samunet_pretrain",
        description="Further train an encoder on a dataset's own images, without labels; goes on from what the folder "
        "holds.",
    )
    parser.add_argument(
        "-d", metavar="ID", help="a preprocessed dataset, whose images in imagesTr and imagesTs are seen"
    )
    parser.add_argument("-encoder", help="vit_b, vit_l, vit_h, vit_t or small, as planned (default: as samunet_train)")
    parser.add_argument("-c", metavar="CONFIGURATION", help="whose slices and input are used (default: 2d)")
    parser.add_argument("-p", metavar="NAME", help=f"plans' name (default: {DEFAULT_PLANS_NAME})")
    parser.add_argument("--no_test_images", action="store_true", help="leave out imagesTs")
    parser.add_argument(
        "--checkpoint", type=Path, metavar="FILE",
        help="weights in SAM's layout to start from (default: the encoder's own)",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="for checkpoints, log and weights (default: among the results)"
    )
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--time_budget", metavar="T", help="length of this piece: 90s, 20m, 1.5h")
    length.add_argument("--iterations", type=int, metavar="N", help="updates over all pieces, or of the final decay")
    parser.add_argument(
        "--objective", choices=["mae"], help="what the encoder is asked: mae, to reconstruct what is hidden"
    )
    parser.add_argument("--final_decay", action="store_true", help="bring the rate to zero over this piece")
    parser.add_argument(
        "--batch_size", type=int, metavar="N", help="images per update (default: as memory allows, at most 12)"
    )
    parser.add_argument("--lr", type=finite, help="learning rate (default: 1e-4)")
    parser.add_argument("--seed", type=int, default=12345, help="all randomness depends on it (default: 12345)")
    parser.add_argument("-device", default="auto", help="cpu, cuda, cuda:1 or mps (default: a GPU if there is one)")
    add_common_flags(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    return run_command(build_parser(), _run, argv)


def _run(arguments: argparse.Namespace) -> None:
    from samunet import paths
    from samunet.dataset.layout import find_dataset
    from samunet.training.pretraining.own_images import OBJECTIVE, OwnImages, pretrain_without_end_given
    from samunet.training.pretraining.run import WEIGHTS_SO_FAR, pretrain
    from samunet.workers import default_workers

    _check(arguments)
    dataset = find_dataset(arguments.d)
    work = OwnImages(
        dataset, arguments.encoder, arguments.checkpoint, arguments.c or "2d", arguments.p or DEFAULT_PLANS_NAME,
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
    from samunet.errors import UsageError

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
