"""What the two commands that predict have in common: every flag but those that name the model."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from samunet.commands.common import add_common_flags, finite
from samunet.commands.flags import add_checkpoint, add_overwrite

GO_ON = "the same command with --continue_prediction goes on from here"


def add_input_and_output(parser: argparse.ArgumentParser) -> None:
    """``-i`` and ``-o``."""
    parser.add_argument(
        "-i", type=Path, nargs="+", required=True, metavar="INPUT", help="a folder of images, or one or several files"
    )
    parser.add_argument(
        "-o", type=Path, required=True, metavar="OUTPUT", help="folder for the masks; for a single case also a file"
    )


def add_prediction(parser: argparse.ArgumentParser) -> None:
    """How to predict."""
    parser.add_argument("-f", nargs="+", metavar="FOLD", help="folds to average (default: all that are finished)")
    add_checkpoint(parser)
    parser.add_argument("-device", default="auto", help="cpu, cuda, cuda:1 or mps (default: a GPU if there is one)")
    parser.add_argument(
        "-step_size", type=finite, default=0.5, help="distance of tiles as share of their side (default: 0.5)"
    )
    parser.add_argument(
        "--disable_tta",
        action="store_true",
        help="no averaging over mirrored or shifted images, nor over slices along several axes: faster",
    )
    parser.add_argument(
        "--disable_postprocessing",
        action="store_true",
        help="leave out what samunet_find_best_configuration found to help",
    )
    parser.add_argument("--save_probabilities", action="store_true", help="also write CASE.npz with the probabilities")
    parser.add_argument(
        "--save_uncertainty",
        action="store_true",
        help="also write images of the uncertainty, and quality.csv with a predicted Dice for every case",
    )
    parser.add_argument(
        "--continue_prediction", "--c", action="store_true", help="keep masks that this model has made already"
    )
    add_overwrite(parser)
    parser.add_argument(
        "--tolerate_geometry", action="store_true", help="only warn where channels differ in origin or direction"
    )
    parser.add_argument(
        "-num_parts", type=int, default=1, metavar="N", help="divide the cases into N parts (default: 1)"
    )
    parser.add_argument("-part_id", type=int, default=0, metavar="I", help="which part to predict, from 0")
    add_common_flags(parser)


def predict(arguments: argparse.Namespace, **model: Any) -> None:
    """Predict with the model that ``model``, keywords of :func:`samunet.api.predict`, names."""
    from samunet import api

    options = api.PredictionOptions(
        device=arguments.device,
        tta=not arguments.disable_tta,
        step_size=arguments.step_size,
        save_probabilities=arguments.save_probabilities,
        save_uncertainty=arguments.save_uncertainty,
        skip_existing=arguments.continue_prediction,
        overwrite=arguments.overwrite,
        tolerate_geometry=arguments.tolerate_geometry,
        postprocessing=not arguments.disable_postprocessing,
    )
    api.predict(
        arguments.i[0] if len(arguments.i) == 1 else arguments.i,
        arguments.o,
        folds=arguments.f,
        checkpoint=arguments.chk,
        options=options,
        part=(arguments.part_id, arguments.num_parts),
        **model,
    )
