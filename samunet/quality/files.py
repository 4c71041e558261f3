"""Names of the files in ``uncertainty/``, beside the masks of a prediction or a validation."""

from __future__ import annotations

from pathlib import Path

FOLDER = "uncertainty"


def case_file(masks: Path, case: str) -> Path:
    """What speaks against every class of a case, as JSON; ``masks`` is the folder of its mask."""
    return masks / FOLDER / f"{case}.json"


def map_file(mask: Path, case: str, kind: str) -> Path:
    """An image in the geometry of a case; ``kind`` is ``entropy`` or ``fold_disagreement``."""
    from samunet.imageio.registry import ending_of

    return mask.parent / FOLDER / f"{case}_{kind}{ending_of(mask)}"
