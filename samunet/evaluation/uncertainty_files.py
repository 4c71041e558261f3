"""Files in ``uncertainty/``, among the masks of a prediction or a validation."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NotRequired

from typing_extensions import TypedDict  # pydantic needs this before Python 3.12

from samunet.files import read_as
from samunet.imageio.registry import ending_of

FOLDER = "uncertainty"
KINDS = ("entropy", "fold_disagreement")
_LIKE_A_MAP = re.compile(rf"_({'|'.join(KINDS)})(_case)*$")
TABLES = ("quality.csv", "quality.json")


def case_file(masks: Path, case: str) -> Path:
    """Uncertainty of every class of a case, as JSON; ``masks`` is the folder of its mask.

    A case that is called like another one's map, ``p1_entropy``, gets ``p1_entropy_case.json``: a TIFF map has its
    spacing in ``p1_entropy.json``.
    """
    return masks / FOLDER / f"{case}{'_case' * bool(_LIKE_A_MAP.search(case))}.json"


def measured_cases(masks: Path) -> list[str]:
    """Names of the cases that have a :func:`case_file`, sorted."""
    stems = [file.stem for file in (masks / FOLDER).glob("*.json") if not file.name.startswith(".")]
    cases = {stem.removesuffix("_case") if _LIKE_A_MAP.search(stem) else stem for stem in stems}
    return sorted(case for case in cases if case_file(masks, case).stem in stems)


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
