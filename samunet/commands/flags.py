"""Flags that several commands share, each written once."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from samunet.commands.table import Flag, Group, Switch
from samunet.errors import UsageError

if TYPE_CHECKING:
    from samunet.adaptations.adaptation import Adaptation, Setting

PLANS_NAME = "samunetPlans"  # samunet.plans.DEFAULT_PLANS_NAME, without its imports


def finite(text: str) -> float:
    """A number on a command line: neither NaN nor infinite."""
    value = float(text)
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"must be a finite number, got {text}")
    return value


class _OneNumber(argparse.Action):
    """Of ``-np``, where nnU-Net takes a number for each configuration. Not beside arguments without a flag."""

    def __call__(self, parser, namespace, values, option_string=None):
        if len(values) > 1:
            raise UsageError(
                f"{option_string} takes one number, for all configurations, and got {len(values)}",
                f"use {option_string} {max(values)}",
            )
        setattr(namespace, self.dest, values[0])


def _checkpoint(text: str) -> str:
    """``best`` of ``best``, ``checkpoint_best.pth`` or ``checkpoint_best.safetensors``."""
    return text.removeprefix("checkpoint_").removesuffix(".pth").removesuffix(".safetensors")


def checkpoint(**options: Any) -> Flag:
    """``-chk``; nnU-Net's names of files are understood."""
    given = {
        "default": "final",
        "help": "which model file (default: final); best had the highest Dice on the monitored cases",
    }
    return Flag("-chk", type=_checkpoint, choices=("final", "best"), **({"dest": "checkpoint"} | given | options))


def geometry(where: str = "where channels, or image and label, differ in origin or direction") -> Flag:
    """``--tolerate_geometry``."""
    return Switch("--tolerate_geometry", help=f"only warn {where}, and take voxels as they lie in the files")


class AdaptationFlags:
    """What is adapted, and how: fields of all adaptations (:class:`samunet.adaptations.adaptation.Setting`)."""

    def add_to(self, parser: Any) -> None:
        """Add them to a parser or to a group of one."""
        from samunet.adaptations import ADAPTATIONS

        *names, last = ADAPTATIONS
        names = f"{', '.join(names)} or {last} (default: lora for pretrained SAM)"
        parser.add_argument("-adaptation", metavar="NAME", help=names)
        frozen = "encoder_decoder (default) or decoder: the encoder is frozen"
        parser.add_argument("-components", metavar="NAME", help=frozen)
        for flag, dest, field, setting in self._settings():
            kind = {"nargs": "+"} if setting.of_words else {"type": field.annotation}
            options = {"metavar": setting.metavar, **kind}
            if field.annotation is bool:
                options = {"action": "store_const", "const": True}
            parser.add_argument(flag, dest=dest, help=setting.help, **options)

    def chosen(self, arguments: dict[str, Any]) -> Adaptation | str | None:
        """The adaptation that ``-adaptation`` names, or one of whose settings are given, with these.

        Raises:
            UsageError: If a value is not allowed, or belongs to another adaptation.
        """
        from samunet.adaptations import ADAPTATIONS

        chosen, given = arguments["adaptation"], {}
        for flag, dest, _, setting in self._settings():
            value = arguments[dest]
            if value is None:
                continue
            method, name = dest.split(".")
            chosen = chosen or method
            if method != chosen:
                raise UsageError(
                    f"{flag} is of the adaptation {method!r}, not of {chosen!r}", "leave out one of the two"
                )
            try:
                given[name] = setting.of_words(value) if setting.of_words else value
            except ValueError as error:
                raise UsageError(f"{flag} {error}") from None
        return ADAPTATIONS[chosen].of_flags(given) if given else chosen

    @staticmethod
    def _settings() -> Iterator[tuple[str, str, Any, Setting]]:
        """Of every field its flag, its place ``METHOD.FIELD``, pydantic's description, and how a command takes it."""
        from samunet.adaptations import ADAPTATIONS
        from samunet.adaptations.adaptation import Setting

        for method, kind in ADAPTATIONS.items():
            for name, field in kind.model_fields.items():
                for setting in field.metadata:
                    if isinstance(setting, Setting):
                        dashes = "--" if field.annotation is bool else "-"
                        flag = f"{dashes}{name}" if setting.alone else f"{dashes}{method}_{name}"
                        yield flag, f"{method}.{name}", field, setting


class _Window(argparse.Action):
    """Lowest and highest intensity of a window's centre and width."""

    def __call__(self, parser, namespace, values, option_string=None):
        centre, width = values
        if not (math.isfinite(centre) and math.isfinite(width) and width > 0):
            raise UsageError(
                f"{option_string} needs a centre and a width above 0, got {centre:g} {width:g}",
                f"for example: {option_string} 40 400",
            )
        setattr(namespace, self.dest, (centre - width / 2, centre + width / 2))


def duration(text: str) -> float:
    """Seconds of ``90s``, ``20m``, ``1.5h``."""
    from samunet.training.schedule import parse_duration

    return parse_duration(text)


ADAPTATION = AdaptationFlags()
DATASETS = Flag(
    "-d",
    dest="datasets",
    also=("dataset",),
    nargs="+",
    required=True,
    metavar="ID",
    help="datasets: 27, 027 or Dataset027_ACDC; several are done in turn",
)
DATASET = Flag("dataset", help="27, 027 or Dataset027_ACDC")
MODEL = (DATASET, Flag("configuration", help="for example 2d"), Flag("fold", help="0 to 4, or all"))
PLANS = Flag("-p", dest="plans_name", default=PLANS_NAME, metavar="NAME", help=f"plans' name (default: {PLANS_NAME})")
DEVICE = Flag("-device", default="auto", help="cpu, cuda, cuda:1 or mps (default: a GPU if there is one)")
OVERWRITE = Switch(
    "--overwrite",
    help="also replace files that samunet did not write or that were edited since; never a dataset or a model",
)
_WORKERS = {
    "dest": "num_workers",
    "type": int,
    "metavar": "N",
    "help": "worker processes; 0 or 1: none (default: none on two cores or fewer, else one per core, at most 8)",
}
WORKERS = Flag("-np", **_WORKERS)
WORKERS_ONE_NUMBER = Flag("-np", **_WORKERS, nargs="+", action=_OneNumber)
WINDOW = Flag(
    "-window",
    action=_Window,
    type=float,
    nargs=2,
    metavar=("C", "W"),
    help="intensities shown: centre and width, such as 40 400 (default: of CT, what the plans clip to; of others, the "
    "1st to 99th percentile)",
)
CONFIGURATIONS = Flag(
    "-c",
    dest="configurations",
    nargs="+",
    default=["2d"],
    metavar="CONFIGURATION",
    help="configurations to store slices for (default: 2d, whose slices serve 2d_896, 2d_672 and 2d_448 as well)",
)
FINGERPRINT = (
    Switch("--clean", help="measure the fingerprint again even if it is up to date"),
    Switch(
        "--verify_dataset_integrity",
        dest="verify",
        help="first read every file and list all that is wrong with any of them, each with its remedy; the list is "
        "also written to integrity_report.txt and .json. Errors end the command with status 1, warnings do not",
    ),
    Switch(
        "--no_groups", help="do not tell patients from the names of cases: every case stands for itself in the folds"
    ),
)
PLANNER = (
    Flag(
        "-gpu_memory_target",
        dest="gpu_memory_target_gb",
        type=finite,
        default=8.0,
        metavar="GB",
        help="memory a training step may take (default: 8); with less, SAM's blocks are first computed twice, then "
        "its input shrinks",
    ),
    Flag(
        "-encoder",
        default="auto",
        help="vit_b, vit_l, vit_h, vit_t (MobileSAM) or small; auto (default) leaves it to samunet_train",
    ),
    Flag(
        "-image_size",
        type=int,
        metavar="PX",
        help="long side of the network's input in pixels, a multiple of 16 (default: a rule)",
    ),
    Flag(
        "-overwrite_target_spacing",
        dest="target_spacing",
        type=finite,
        nargs=3,
        metavar=("Z", "Y", "X"),
        help="spacing in mm instead of the median, in the order of the array's axes",
    ),
    Flag(
        "-window",
        type=finite,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="values of CT that become 0 and 1 (default: by training foreground; with published recipes -125 275)",
    ),
    Flag(
        "-overwrite_plans_name",
        dest="plans_name",
        default=PLANS_NAME,
        metavar="NAME",
        help=f"plans' name, so that several can stand side by side (default: {PLANS_NAME})",
    ),
    Group(
        "adaptation of SAM (give plans of each kind a name: -overwrite_plans_name)",
        ADAPTATION,
        Flag(
            "-recipe",
            default="samunet",
            metavar="NAME",
            help="samunet (default); samed or finetune_sam: train as SAMed or as Gu et al. do, for classes without "
            "regions or an ignore label; or your own: package.module:Class",
        ),
    ),
)
SHOWING = (
    Switch("--dry_run", help="plan from the fingerprint that is there, and write nothing"),
    Switch("--json", help="print the plans as JSON"),
)
SEED = Flag("--seed", type=int, default=12345, help="all randomness depends on it (default: 12345)")
