"""Names of recipes, and what planning and prediction must know of them without importing them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from samunet.errors import UsageError

_OWN = re.compile(r"[^\W\d][\w.]*:[^\W\d]\w*")


@dataclass(frozen=True)
class RecipeFacts:
    """How a recipe differs from what the planner decides by itself; the defaults are those of everybody's own recipe.

    Attributes:
        source: Whose it is, for reasons in plans; empty for none but ours.
        summary: What it does, for the plans' ``why``.
        upsampled: Whether the loss sees logits at the input's resolution.
        averages: Whether predictions are averages over mirrored or shifted inputs, and over planes.
        values_as_they_are: Whether the encoder sees the channels' values, on 0-1, without the statistics of pictures.
        unit_range: Whether channels are brought to 0-1 rather than to mean 0 and deviation 1.
        needs_sam: Whether it is for a pretrained SAM alone.
        exclusive_classes: Whether its loss knows only classes that exclude each other, and needs every pixel annotated.
        whole_slices: Whether slices are stored uncropped, and stretched to a square input.
        input_size: Its side in pixels; None for the planner's.
        batch: Images in an update; None for the planner's.
        learning_rate: Peak; None for that of the adaptation, scaled with the batch.
        passes: Over all slices, the length of a training; None where slices are drawn.
        passes_of: The same for some encoders.
        outer_blocks: Whether an adaptation is of the first two and the last two blocks rather than of all.
    """

    source: str = ""
    summary: str = "given by recipe"
    upsampled: bool = True
    averages: bool = True
    values_as_they_are: bool = False
    unit_range: bool = False
    needs_sam: bool = False
    exclusive_classes: bool = False
    whole_slices: bool = False
    input_size: int | None = None
    batch: int | None = None
    learning_rate: float | None = None
    passes: int | None = None
    passes_of: tuple[tuple[str, int], ...] = ()
    outer_blocks: bool = False


RECIPES = {
    "samunet": RecipeFacts(summary="the default"),
    "samed": RecipeFacts(
        source="SAMed",
        summary="given by recipe: 0.2 cross-entropy + 0.8 Dice with background on quarter-resolution masks, input on "
        "0-1, every slice once in a pass, AdamW 5e-3 at a batch of 24 with decay on everything, no clipping (SAMed)",
        upsampled=False, averages=False, values_as_they_are=True, unit_range=True, needs_sam=True,
        exclusive_classes=True, whole_slices=True, input_size=512, batch=24, passes=160,
        passes_of=(("vit_h", 300),),
    ),
    "finetune_sam": RecipeFacts(
        source="Gu et al.",
        summary="given by recipe: cross-entropy + Dice of sigmoids with background, image by image, on "
        "quarter-resolution masks, slices with a target alone, AdamW 1e-3 at a batch of 4 with decay on everything, no "
        "clipping, ended when it no longer gets better (Gu et al.)",
        upsampled=False, averages=False, unit_range=True, exclusive_classes=True, whole_slices=True, input_size=1024,
        batch=4, learning_rate=1e-3, passes=200, outer_blocks=True,
    ),
}  # fmt: skip


def recipe_facts(name: str) -> RecipeFacts:
    """Facts of a recipe by its name; those of the plain one for ``package.module:Class``, which is not imported."""
    return RECIPES.get(name, RecipeFacts())


def is_recipe_name(name: str) -> bool:
    """Whether it is a recipe of the package, or may be one of somebody's own: ``package.module:Class``."""
    return name in RECIPES or bool(_OWN.fullmatch(name))


def check_recipe_name(name: str) -> None:
    """Refuse what cannot be a recipe.

    Raises:
        UsageError: Says what can be.
    """
    if not is_recipe_name(name):
        raise UsageError(
            f"there is no recipe {name!r}", f"use one of {', '.join(RECIPES)}, or your own: package.module:Class"
        )
