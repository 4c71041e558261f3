"""Names of recipes, and what planning and prediction must know of them without importing them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from samunet.errors import UsageError

_OWN = re.compile(r"[^\W\d][\w.]*:[^\W\d]\w*")


@dataclass(frozen=True)
class RecipeFacts:
    """How a recipe's network differs from the plain one; the defaults are those of everybody's own recipe.

    Attributes:
        upsampled: Whether the loss sees logits at the input's resolution.
        averages: Whether predictions are averages over mirrored or shifted inputs, and over planes.
        values_as_they_are: Whether the encoder sees the channels' values, on 0-1, without the statistics of pictures.
    """

    upsampled: bool = True
    averages: bool = True
    values_as_they_are: bool = False


RECIPES = {
    "samunet": RecipeFacts(),
    "samed": RecipeFacts(upsampled=False, averages=False, values_as_they_are=True),
}


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
