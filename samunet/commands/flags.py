"""Flags that several commands share, each written once."""

from __future__ import annotations

import argparse
import math
import sys
from typing import Any

from samunet.commands.common import finite
from samunet.errors import UsageError
from samunet.plans import DEFAULT_PLANS_NAME


def add_dataset(parser: argparse.ArgumentParser) -> None:
    """``-d``: one or several datasets."""
    parser.add_argument(
        "-d",
        nargs="+",
        required=True,
        metavar="ID",
        help="datasets: 27, 027 or Dataset027_ACDC; several are done in turn",
    )


def add_fingerprint(parser: argparse.ArgumentParser) -> None:
    """Flags of the fingerprint."""
    parser.add_argument("--clean", action="store_true", help="measure the fingerprint again even if it is up to date")
    parser.add_argument(
        "--verify_dataset_integrity",
        action="store_true",
        help="first read every file and list all that is wrong with any of them, each with its remedy",
    )
    parser.add_argument(
        "--no_groups",
        action="store_true",
        help="do not tell patients from the names of cases: every case stands for itself in the folds",
    )


def add_overwrite(parser: argparse.ArgumentParser) -> None:
    """``--overwrite`` of commands that write masks or pictures."""
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="also replace files that samunet did not write or that were edited since; never a dataset or a model",
    )


def add_geometry(
    parser: argparse.ArgumentParser, where: str = "where channels, or image and label, differ in origin or direction"
) -> None:
    """``--tolerate_geometry``."""
    parser.add_argument(
        "--tolerate_geometry",
        action="store_true",
        help=f"only warn {where}, and take voxels as they lie in the files",
    )


def add_planner(parser: argparse.ArgumentParser) -> None:
    """Flags of the planner."""
    parser.add_argument(
        "-gpu_memory_target",
        type=finite,
        default=8.0,
        metavar="GB",
        help="memory a training step may take (default: 8)",
    )
    parser.add_argument(
        "-encoder",
        default="auto",
        help="vit_b, vit_l, vit_h, vit_t (MobileSAM) or small; auto (default) leaves it to samunet_train",
    )
    parser.add_argument(
        "-image_size", type=int, metavar="PX", help="long side of the network's input in pixels (default: a rule)"
    )
    parser.add_argument(
        "-overwrite_target_spacing",
        type=finite,
        nargs=3,
        metavar=("Z", "Y", "X"),
        help="spacing in mm instead of the median",
    )
    parser.add_argument(
        "-overwrite_plans_name",
        default=DEFAULT_PLANS_NAME,
        metavar="NAME",
        help=f"plans' name (default: {DEFAULT_PLANS_NAME})",
    )
    add_adaptation(parser)


def add_adaptation(parser: argparse.ArgumentParser) -> None:
    """How SAM is adapted; part of the planner's flags."""
    group = parser.add_argument_group("adaptation of SAM (give plans of each kind a name: -overwrite_plans_name)")
    group.add_argument("-adaptation", metavar="NAME", help="lora, adapter or full (default: lora for pretrained SAM)")
    group.add_argument(
        "-components", metavar="NAME", help="encoder_decoder (default) or decoder: the encoder is frozen"
    )
    group.add_argument("-lora_rank", type=int, metavar="R", help="default: 4")
    group.add_argument("-lora_alpha", type=int, metavar="A", help="default: the rank")
    group.add_argument(
        "-lora_targets", nargs="+", metavar="NAME", help="q k v proj mlp, or attention: q k v proj (default: q v)"
    )
    group.add_argument("-lora_blocks", nargs="+", metavar="B", help="all (default), last_half, or numbers from 0")
    group.add_argument(
        "--lora_decoder", action="store_true", help="LoRA in the decoder instead of training it (SAMed_s)"
    )
    group.add_argument("--dora", action="store_true", help="weight-decomposed LoRA")
    group.add_argument("--rslora", action="store_true", help="rank-stabilised LoRA")
    group.add_argument("-adapter_reduction", type=int, metavar="N", help="channels by bottleneck channels (default: 4)")
    group.add_argument("-adapter_blocks", nargs="+", metavar="B", help="as -lora_blocks")
    group.add_argument(
        "-recipe",
        default="samunet",
        metavar="NAME",
        help="samunet (default), samed: train as SAMed does, or your own: package.module:Class",
    )


def add_showing(parser: argparse.ArgumentParser) -> None:
    """``--dry_run`` and ``--json`` of commands that plan."""
    parser.add_argument(
        "--dry_run", action="store_true", help="plan from the fingerprint that is there, and write nothing"
    )
    parser.add_argument("--json", action="store_true", help="print the plans as JSON")


def show_plans(plans, arguments: argparse.Namespace) -> None:
    """Print :class:`samunet.plans.Plans` where ``--json`` asks for them; say that nothing was written where so."""
    from dataclasses import asdict

    from samunet.files import to_json

    if arguments.json:
        print(to_json(asdict(plans)))
    if arguments.dry_run:
        print("nothing was written: run the command again without --dry_run", file=sys.stderr)


def add_preprocess(parser: argparse.ArgumentParser) -> None:
    """Flags of preprocessing."""
    parser.add_argument("-c", nargs="+", default=["2d"], metavar="CONFIGURATION", help="configurations (default: 2d)")


def add_workers(parser: argparse.ArgumentParser, **keywords: Any) -> None:
    """``-np``."""
    told = "worker processes; 0 or 1: none (default: none on two cores or fewer)"
    parser.add_argument("-np", type=int, metavar="N", help=told, **keywords)


class OneNumber(argparse.Action):
    """Of ``-np``, where nnU-Net takes a number for each configuration. Not beside arguments without a flag."""

    def __call__(self, parser, namespace, values, option_string=None):
        if len(values) > 1:
            raise UsageError(
                f"{option_string} takes one number, for all configurations, and got {len(values)}",
                f"use {option_string} {max(values)}",
            )
        setattr(namespace, self.dest, values[0])


def add_checkpoint(parser: argparse.ArgumentParser, **keywords: Any) -> None:
    """``-chk``; nnU-Net's names of files are understood."""
    given = {"default": "final", "help": "which model file (default: final)"} | keywords
    parser.add_argument("-chk", type=_checkpoint, choices=("final", "best"), **given)


def _checkpoint(text: str) -> str:
    """``best`` of ``best``, ``checkpoint_best.pth`` or ``checkpoint_best.safetensors``."""
    return text.removeprefix("checkpoint_").removesuffix(".pth").removesuffix(".safetensors")


def add_window(parser: argparse.ArgumentParser) -> None:
    """``-window``."""
    parser.add_argument(
        "-window",
        type=float,
        nargs=2,
        metavar=("C", "W"),
        help="intensities shown: centre and width, such as 40 400 (default: of CT, what the plans clip to)",
    )


def window_of(given: list[float] | None) -> tuple[float, float] | None:
    """Lowest and highest intensity of a window's centre and width.

    Raises:
        UsageError: If the width is not positive.
    """
    if given is None:
        return None
    centre, width = given
    if not (math.isfinite(centre) and math.isfinite(width) and width > 0):
        raise UsageError(
            f"-window needs a centre and a width above 0, got {centre:g} {width:g}", "for example: -window 40 400"
        )
    return centre - width / 2, centre + width / 2


def planner_options(arguments: argparse.Namespace):
    """The :class:`samunet.planning.planner.PlannerOptions` that the flags ask for."""
    from samunet.planning.planner import PlannerOptions

    return PlannerOptions(
        plans_name=arguments.overwrite_plans_name,
        gpu_memory_target_gb=arguments.gpu_memory_target,
        encoder=arguments.encoder,
        image_size=arguments.image_size,
        target_spacing=arguments.overwrite_target_spacing,
        adaptation=arguments.adaptation,
        components=arguments.components,
        lora=_lora(arguments),
        adapter=_adapter(arguments),
        recipe=arguments.recipe,
    )


def _lora(arguments: argparse.Namespace):
    """The :class:`samunet.plans.LoraPlan` that the flags ask for; None if none of them is given."""
    from samunet.plans import LoraPlan

    given = {
        "rank": arguments.lora_rank,
        "alpha": arguments.lora_alpha if arguments.lora_alpha is not None else arguments.lora_rank,
        "targets": arguments.lora_targets and _targets(arguments.lora_targets),
        "blocks": _blocks("-lora_blocks", arguments.lora_blocks),
        "decoder": arguments.lora_decoder or None,
        "dora": arguments.dora or None,
        "rslora": arguments.rslora or None,
    }
    given = {key: value for key, value in given.items() if value is not None}
    return LoraPlan(**given) if given else None


def _adapter(arguments: argparse.Namespace):
    from samunet.plans import AdapterPlan

    given = {
        "reduction": arguments.adapter_reduction,
        "blocks": _blocks("-adapter_blocks", arguments.adapter_blocks),
    }
    given = {key: value for key, value in given.items() if value is not None}
    return AdapterPlan(**given) if given else None


def _targets(words: list[str]) -> list[str]:
    names = [name for word in words for name in (("q", "k", "v", "proj") if word == "attention" else (word,))]
    return list(dict.fromkeys(names))


def _blocks(flag: str, words: list[str] | None) -> str | list[int] | None:
    if words is None or words in (["all"], ["last_half"]):
        return words and words[0]
    if not all(word.isdecimal() for word in words):
        raise UsageError(f"{flag} must be all, last_half or numbers of blocks, got {' '.join(words)!r}")
    return [int(word) for word in words]
