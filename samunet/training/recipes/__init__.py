"""Recipes: how a network learns."""

from __future__ import annotations

import importlib

from samunet.errors import UsageError
from samunet.recipes import check_recipe_name
from samunet.training.recipes.finetune_sam import FinetuneSam
from samunet.training.recipes.recipe import BaseRecipe, Batch, Recipe
from samunet.training.recipes.samed import Samed

__all__ = ["RECIPES", "BaseRecipe", "Batch", "Recipe", "load_recipe"]

RECIPES: dict[str, type[Recipe]] = {"samunet": Recipe, "samed": Samed, "finetune_sam": FinetuneSam}


def load_recipe(name: str) -> type[Recipe]:
    """A recipe by its name in :data:`RECIPES`, or imported as ``package.module:Class``.

    Raises:
        UsageError: If there is none, it cannot be imported, or it is no recipe.
    """
    if name in RECIPES:
        return RECIPES[name]
    check_recipe_name(name)
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # the border to somebody's own code
        raise UsageError(
            f"the recipe {name} cannot be imported: {type(error).__name__}: {error}",
            "set PYTHONPATH to the folder that holds its package or file",
        ) from error
    if not (isinstance(found, type) and issubclass(found, Recipe)):
        raise UsageError(f"{name} is no subclass of samunet.training.recipes.Recipe", "see write_a_recipe.md")
    return found
