"""Choice of postprocessing by the Dice of masks that nothing was trained on."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from samunet.dataset.description import Description
from samunet.dataset.labels import Labels
from samunet.dataset.outputs import check_folder, check_place
from samunet.errors import SamunetError
from samunet.evaluation.bootstrap import class_means, mean_dice
from samunet.evaluation.metrics import confusion_counts, dice
from samunet.evaluation.summary import read_pair
from samunet.imageio.base import Reader
from samunet.inference.postprocessing import FILE_NAME, Postprocessing, Step, class_step, foreground_step
from samunet.selection.apply import write_postprocessed
from samunet.selection.masks import Pairs, copy_beside, description_beside, masks_in, write_scored
from samunet.workers import map_cases

log = logging.getLogger(__name__)

FOLDER = "postprocessed"


@dataclass(frozen=True)
class PostprocessingChoice:
    """What was chosen, and why.

    Attributes:
        postprocessing: The accepted steps.
        decisions: One entry per step that was tried, for people.
        before, after: Dice ``(cases, classes)`` without and with the accepted steps.
    """

    postprocessing: Postprocessing
    decisions: list[dict[str, Any]]
    before: np.ndarray
    after: np.ndarray


def determine_postprocessing(
    *,
    predictions: str | Path,
    references: str | Path,
    dataset_json: str | Path | None = None,
    keep_masks: bool = True,
    tolerate_geometry: bool = False,
    num_workers: int = 0,
) -> PostprocessingChoice:
    """Choose postprocessing for a folder of masks, and write ``postprocessing.json`` into it.

    Args:
        predictions: Folder of masks that were predicted for cases that the model had not seen.
        references: Folder with their labels; labels without a prediction are left out.
        dataset_json: None for the one in ``predictions``.
        keep_masks: Also write the postprocessed masks and their ``summary.json`` to ``postprocessed`` there.
        tolerate_geometry: Compare voxels as they lie, with a warning, where origin or direction differ.

    Raises:
        UsageError: If the masks lie in a raw dataset, or ``postprocessed`` holds masks that this program did not write.
        SamunetError: If a prediction has no reference or another grid, or a file cannot be read; names the case.
    """
    predictions = Path(predictions)
    masks, labelled = masks_in(predictions), masks_in(Path(references))
    description = description_beside(predictions, Path(dataset_json) if dataset_json is not None else None)
    without = sorted(masks.keys() - labelled.keys())
    if without:
        raise SamunetError(
            f"{references} has no label for {len(without)} of {len(masks)} masks, such as {without[0]}",
            "give the folder with the labels of these cases: `references`",
        )
    pairs = {name: (mask, labelled[name]) for name, mask in masks.items()}
    check_place(predictions)
    if keep_masks:
        remedy = f"move {predictions / FOLDER} elsewhere, or add `keep_masks=False`"
        check_folder(predictions / FOLDER, targets=[mask.name for mask in masks.values()], remedy=remedy)
    chosen = choose(pairs, description.labels, description, num_workers, tolerate_geometry)
    chosen.postprocessing.write(predictions / FILE_NAME, chosen.decisions)
    if keep_masks:
        write_chosen(pairs, chosen, description.labels, description, predictions, num_workers, tolerate_geometry)
    return chosen


def choose(
    pairs: Pairs, labels: Labels, description: Description, num_workers: int, tolerate_geometry: bool = True
) -> PostprocessingChoice:
    """Try nnU-Net's steps one after the other and keep those that help.

    First the largest component of all foreground; then, where there are several classes, of each class. A step is kept
    if the Dice that it is about rises (the mean of all classes for the first, its own for the others) and that of no
    class falls.

    Args:
        pairs: Masks and references.
        labels: What the masks hold.
        description: How to read the references.
        tolerate_geometry: See :func:`determine_postprocessing`; preprocessing has accepted a dataset's own labels.
    """
    reader = description.reader
    count = len(labels.foreground)
    singles = [(class_step(labels, index), index) for index in range(count)] if count > 1 else []
    # What a class loses goes to the background, so that classes do not touch each other and are tried in one pass over
    # the files. Regions lie in each other: each is tried on what the steps before it left.
    rounds = [[(foreground_step(labels), None)], *([[one] for one in singles] if labels.has_regions else [singles])]
    steps, decisions, before, current = (), [], None, None
    for candidates in filter(None, rounds):
        tables = _dice_with_each(
            pairs, Postprocessing(steps), [step for step, _ in candidates], labels, reader, num_workers,
            tolerate_geometry,
        )  # fmt: skip
        current = tables[0]
        before = current if before is None else before
        for (step, index), table in zip(candidates, tables[1:]):
            entry = _decide(step, index, tables[0], table, labels)
            decisions.append(entry)
            if entry["chosen"]:
                steps += (step,)
                current = table if len(candidates) == 1 else _with_column(current, table, index)
    return PostprocessingChoice(Postprocessing(steps), decisions, before, current)


def write_chosen(
    pairs: Pairs,
    chosen: PostprocessingChoice,
    labels: Labels,
    description: Description,
    source: Path,
    num_workers: int,
    tolerate_geometry: bool = True,
) -> None:
    """Write the masks of ``source`` with the chosen steps, and their ``summary.json``, to ``postprocessed`` in it."""
    reader = description.reader

    def postprocess(files: dict[str, Path]) -> None:
        write_postprocessed(
            {name: (pairs[name][0], file) for name, file in files.items()}, chosen.postprocessing, reader, num_workers
        )

    facts = partial(copy_beside, source)
    write_scored(
        source / FOLDER,
        pairs,
        postprocess,
        facts,
        labels,
        description,
        num_workers,
        tolerate_geometry=tolerate_geometry,
    )


def _dice_with_each(
    pairs: Pairs,
    applied: Postprocessing,
    candidates: Sequence[Step],
    labels: Labels,
    reader: Reader,
    num_workers: int,
    tolerate_geometry: bool,
) -> list[np.ndarray]:
    """Dice ``(cases, classes)`` with the steps so far, and with each candidate on top of them."""
    arguments = [(*pair, applied, candidates, labels, reader, tolerate_geometry) for pair in pairs.values()]
    results = dict(
        map_cases(_dice_of_case, list(pairs), arguments, num_workers=num_workers, description="Postprocessing")
    )
    return [np.array([results[name][index] for name in pairs], dtype=float) for index in range(1 + len(candidates))]


def _dice_of_case(
    mask_file: Path,
    reference_file: Path,
    applied: Postprocessing,
    candidates: Sequence[Step],
    labels: Labels,
    reader: Reader,
    tolerate_geometry: bool,
) -> list[list[float]]:
    mask, reference, _ = read_pair(mask_file, reference_file, reader, tolerate_geometry=tolerate_geometry)
    regions = [region for _, region in labels.foreground]
    mask = applied.apply(mask)
    rows = [[dice(count) for count in confusion_counts(mask, reference, regions, labels.ignore)]]
    for step in candidates:
        changed = step.apply(mask)
        rows.append(
            rows[0]
            if changed is mask
            else [dice(count) for count in confusion_counts(changed, reference, regions, labels.ignore)]
        )
    return rows


def _decide(step: Step, index: int | None, current: np.ndarray, table: np.ndarray, labels: Labels) -> dict[str, Any]:
    before, after = class_means(current), class_means(table)
    worse = [labels.foreground[place][0] for place in np.flatnonzero(after < before)]
    if index is None:
        aim, old, new = "mean Dice", mean_dice(current), mean_dice(table)
    else:
        aim, old, new = f"Dice of {step.name}", float(before[index]), float(after[index])
    chosen = bool(new > old and not worse)
    why = f"{aim} {old:.4f} without, {new:.4f} with"
    if worse:
        why += f"; lowers {', '.join(worse)}"
    log.info("largest component of %s: %s (%s)", step.name, "chosen" if chosen else "not chosen", why)
    return {"step": f"largest component of {step.name}", "chosen": chosen, "why": why}


def _with_column(current: np.ndarray, table: np.ndarray, index: int) -> np.ndarray:
    """``current`` with the Dice of one class as in ``table``."""
    current = current.copy()
    current[:, index] = table[:, index]
    return current
