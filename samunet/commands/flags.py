"""Flags that several commands share, each written once."""

from __future__ import annotations

import argparse

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


def add_planner(parser: argparse.ArgumentParser) -> None:
    """Flags of the planner."""
    parser.add_argument(
        "-gpu_memory_target", type=float, default=8.0, metavar="GB", help="memory a training step may take (default: 8)"
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
        type=float,
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


def add_preprocess(parser: argparse.ArgumentParser) -> None:
    """Flags of preprocessing."""
    parser.add_argument("-c", nargs="+", default=["2d"], metavar="CONFIGURATION", help="configurations (default: 2d)")


def add_workers(parser: argparse.ArgumentParser) -> None:
    """``-np``."""
    parser.add_argument(
        "-np", type=int, metavar="N", help="worker processes; 0 or 1: none (default: none on two cores or fewer)"
    )


def planner_options(arguments: argparse.Namespace):
    """The :class:`samunet.planning.planner.PlannerOptions` that the flags ask for."""
    from samunet.planning.planner import PlannerOptions

    return PlannerOptions(
        plans_name=arguments.overwrite_plans_name,
        gpu_memory_target_gb=arguments.gpu_memory_target,
        encoder=arguments.encoder,
        image_size=arguments.image_size,
        target_spacing=arguments.overwrite_target_spacing,
    )
