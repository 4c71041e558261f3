"""Files in ``uncertainty/``, among the masks of a prediction or a validation."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NotRequired

from typing_extensions import TypedDict  # pydantic needs this before Python 3.12

from samunet.files import read_as
from samunet.imageio.registry import ending_of

FOLDER = "uncertainty"
KINDS = ("entropy", "fold_disagreement")
TABLES = ("quality.csv", "quality.json")


def case_file(masks: Path, case: str) -> Path:
    """Uncertainty of every class of a case, as JSON; ``masks`` is the folder of its mask."""
    return masks / FOLDER / f"{case}.json"


class ClassMeasures(TypedDict):
    """Uncertainty of a class of a case."""

    name: str
    entropy: float | None
    tta_disagreement: float | None
    fold_disagreement: NotRequired[float | None]
    voxels: NotRequired[int]
    millilitres: NotRequired[float | None]


class _Case(TypedDict):
    __pydantic_config__ = {"extra": "allow"}  # noqa: RUF012
    tta: bool
    classes: dict[str, ClassMeasures]


def read_case(file: Path, hint: str) -> dict[str, Any]:
    """Content of a :func:`case_file`.

    Raises:
        SamunetError: If it is missing or damaged, with ``hint``.
    """
    return read_as(_Case, file, hint)


def map_file(mask: Path, case: str, kind: str) -> Path:
    """An image in the geometry of a case; ``kind`` is one of ``KINDS``."""
    return mask.parent / FOLDER / f"{case}_{kind}{ending_of(mask)}"


def delete_stale(mask: Path, case: str) -> None:
    """Delete the uncertainty of a case's earlier mask, and the tables that have it."""
    measured = case_file(mask.parent, case)
    if measured.is_file():
        tables = [mask.parent / name for name in TABLES]
        for file in (*tables, *(map_file(mask, case, kind) for kind in KINDS), measured):
            file.unlink(missing_ok=True)
