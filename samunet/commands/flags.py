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


def workers(arguments: argparse.Namespace) -> int:
    """The number of worker processes that ``-np`` asks for, or one that suits this machine."""
    from samunet.workers import default_workers

    return default_workers() if arguments.np is None else arguments.np


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
    return Flag("-chk", type=_checkpoint, choices=("final", "best"), **(given | options))


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

    def chosen(self, arguments: argparse.Namespace) -> Adaptation | str | None:
        """The adaptation that ``-adaptation`` names, or one of whose settings are given, with these.

        Raises:
            UsageError: If a value is not allowed, or belongs to another adaptation; names the flag.
        """
        from pydantic import ValidationError

        from samunet.adaptations import ADAPTATIONS

        given, flags = {}, {}
        for flag, dest, _, setting in self._settings():
            value = getattr(arguments, dest)
            if value is not None:
                method, name = dest.split(".")
                given.setdefault(method, {})[name] = self._value(flag, value, setting)
                flags[dest] = flag
        chosen = arguments.adaptation or next(iter(given), None)
        for dest, flag in flags.items():
            method = dest.split(".")[0]
            if method != chosen:
                raise UsageError(
                    f"{flag} is of the adaptation {method!r}, not of {chosen!r}",
                    f"leave out {flag}, or what it excludes",
                )
        if chosen not in given:
            return chosen
        try:
            return ADAPTATIONS[chosen].of_flags(given[chosen])
        except ValidationError as error:
            first = error.errors()[0]
            flag = flags[f"{chosen}.{first['loc'][0]}"]
            raise UsageError(f"{flag}: {first['msg']}, got {first['input']!r}") from None

    @staticmethod
    def _value(flag: str, given: Any, setting: Setting) -> Any:
        try:
            return setting.of_words(given) if setting.of_words else given
        except ValueError as error:
            raise UsageError(f"{flag} {error}") from None

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
                        yield setting.flag or f"{dashes}{method}_{name}", f"{method}.{name}", field, setting


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


ADAPTATION = AdaptationFlags()
DATASETS = Flag(
    "-d", nargs="+", required=True, metavar="ID", help="datasets: 27, 027 or Dataset027_ACDC; several are done in turn"
)
DATASET = Flag("dataset", help="27, 027 or Dataset027_ACDC")
MODEL = (DATASET, Flag("configuration", help="for example 2d"), Flag("fold", help="0 to 4, or all"))
PLANS = Flag("-p", default=PLANS_NAME, metavar="NAME", help=f"plans' name (default: {PLANS_NAME})")
DEVICE = Flag("-device", default="auto", help="cpu, cuda, cuda:1 or mps (default: a GPU if there is one)")
OVERWRITE = Switch(
    "--overwrite",
    help="also replace files that samunet did not write or that were edited since; never a dataset or a model",
)
_WORKERS = {
    "type": int,
    "metavar": "N",
    "help": "worker processes; 0 or 1: none (default: none on two cores or fewer, else one per core, at most 8)",
}
WORKERS = Flag("-np", **_WORKERS)
WORKERS_ONE_NUMBER = Flag("-np", **_WORKERS, nargs="+", action=_OneNumber)
WINDOW = Flag(
    "-window",
    type=float,
    nargs=2,
    metavar=("C", "W"),
    help="intensities shown: centre and width, such as 40 400 (default: of CT, what the plans clip to; of others, the "
    "1st to 99th percentile)",
)
CONFIGURATIONS = Flag(
    "-c",
    nargs="+",
    default=["2d"],
    metavar="CONFIGURATION",
    help="configurations to store slices for (default: 2d, whose slices serve 2d_896, 2d_672 and 2d_448 as well)",
)
FINGERPRINT = (
    Switch("--clean", help="measure the fingerprint again even if it is up to date"),
    Switch(
        "--verify_dataset_integrity",
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
