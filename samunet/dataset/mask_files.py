"""Which file of a folder is whose mask. A mask has the ending of its image, which may differ from the dataset's."""

from __future__ import annotations

from pathlib import Path

from samunet.dataset.below import entries
from samunet.dataset.cases import ending_in
from samunet.dataset.names import is_text, one_spelling
from samunet.errors import SamunetError, UsageError, printable
from samunet.imageio.registry import MASK_ENDINGS, companions


def mask_files(folder: Path) -> dict[str, Path]:
    """The label maps of a folder by case; empty if it holds none.

    Raises:
        UsageError: If it is no folder.
        SamunetError: If there are two for the same case, or links that lead nowhere.
    """
    if not Path(folder).is_dir():
        raise UsageError(f"{folder} is not a folder", "give a folder with masks")
    found: dict[str, Path] = {}
    for file in entries(Path(folder)):
        ending = ending_in(file.name, MASK_ENDINGS)
        if ending is None or not file.is_file():
            continue
        first = found.setdefault(one_spelling(file.name.removesuffix(ending)), file)
        if not is_text(file.name):
            raise SamunetError(
                f"{folder}: the name {printable(file.name)} is not UTF-8 or has control characters", "rename the file"
            )
        if first is not file:
            raise SamunetError(f"{folder}: {first.name} and {file.name} are the same case", "remove one of them")
    return found


def with_sidecar(mask: Path) -> list[Path]:
    """A mask and, of a TIFF volume, the JSON file beside it that states its spacing."""
    return [mask, *companions(mask)]
