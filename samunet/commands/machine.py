"""Commands about this machine and its folders: what is there, and what can go."""

from __future__ import annotations

from typing import Any

from samunet.commands.table import Switch, command
from samunet.errors import UsageError


@command(
    "this machine, the folders, and what is in them",
    Switch("--json", help="print it as JSON, sizes in bytes"),
    description="Show versions, processor, cores, memory, devices and the number format they compute in, the folders, "
    "and every dataset with the stage that it has reached, its models, their folds, and what they take on the disk.",
    examples=("samunet_info",),
)
def info(json: bool) -> None:
    from samunet import api
    from samunet.files import to_json

    found = api.info()
    print(to_json(found).rstrip() if json else _text(found))


@command(
    "remove what can be made again or that nothing needs any more",
    Switch("--yes", help="remove what is listed"),
    Switch("--dry_run", help="only list, which is the default"),
    Switch(
        "--validation_masks",
        help="also masks and probabilities of finished folds' validation, which samunet_find_best_configuration needs "
        "(samunet_train --val makes them again)",
    ),
    description="List files among the preprocessed datasets and results that can go, with their sizes; with --yes, "
    "remove them: what killed processes left half written (untouched for an hour), and the checkpoint and feature "
    "cache of trainings that are finished. Raw datasets, plans, stored slices, trained models and scores are never "
    "touched, nor is a fold that is being trained.",
    examples=("samunet_clean", "samunet_clean --yes"),
)
def clean(yes: bool, dry_run: bool, validation_masks: bool) -> None:
    from samunet import api
    from samunet.models.downloads import format_bytes

    if yes and dry_run:
        raise UsageError("--yes and --dry_run exclude each other", "leave one of them out")
    total = 0
    for path, size, why in api.clean(remove=yes, validation_masks=validation_masks):
        total += size
        print(f"{format_bytes(size):>10}  {path}  ({why})")
    if yes:
        print(f"removed: {format_bytes(total)}")
    elif total:
        more = " --validation_masks" if validation_masks else ""
        print(f"{format_bytes(total)} can be freed, and nothing was removed\nnext: samunet_clean{more} --yes")
    else:
        print("there is nothing to remove")


def _text(found: dict[str, Any]) -> str:
    from samunet.models.downloads import format_bytes

    machine = found["machine"]
    memory = format_bytes(machine["memory_bytes"]) if machine["memory_bytes"] else "not known"
    lines = [
        f"samunet {found['samunet']}, torch {machine['torch']}, Python {machine['python']}",
        f"system:  {machine['system']}, {machine['cores']} cores, memory {memory}",
    ]
    lines += [
        f"device:  {name}, {what}, {machine['number_formats'][name]}" for name, what in machine["devices"].items()
    ]
    for name, folder in found["folders"].items():
        if folder["exists"]:
            told = f"{folder['path']} ({format_bytes(folder['bytes'])}; free {format_bytes(folder['bytes_free'])})"
        else:
            told = folder["problem"] if folder["path"] is None else f"{folder['path']} ({folder['problem']})"
        lines.append(f"{name + ':':22}{told}")
    if not found["datasets"]:
        lines.append("no datasets")
    for name, dataset in found["datasets"].items():
        lines.append(f"{name}: {dataset['stage']}, {format_bytes(dataset['bytes'])}")
        for model, folds in dataset["models"].items():
            told = [f"fold {', '.join(folds[key])} {key}" for key in ("trained", "begun") if folds[key]]
            lines.append(f"  {model}: {'; '.join(told) or 'no folds'}, {format_bytes(folds['bytes'])}")
    return "\n".join(lines)
