"""The lines of a NRRD header that place the voxels (https://teem.sourceforge.net/nrrd/format.html).

NRRD stores one vector per axis, its length the spacing. ITK splits it into spacing and direction and multiplies them
again when it writes, which changes the last digits. The lines are therefore kept as they are and put back.
"""

from __future__ import annotations

import re
from pathlib import Path

_PLACING = ("space", "space dimension", "space origin", "space directions")
_VECTOR = re.compile(r"\([^)]*\)|none", re.IGNORECASE)
# The header ends at the first empty line.
_END = re.compile(rb"\r?\n\r?\n")
_LONGEST = 1 << 20


def read_placement(file: Path, dimension: int) -> tuple[str, ...] | None:
    """The header lines that place the voxels, without vectors of axes that are channels.

    Args:
        file: A NRRD file that ITK has read.
        dimension: Spatial axes, 2 or 3.

    Returns:
        None where the header places nothing, or another number of axes: ITK's numbers are exact then.
    """
    with file.open("rb") as stream:
        content = stream.read(_LONGEST)
    end = _END.search(content)
    lines = {}
    for line in content[: end.start() if end else 0].decode("latin-1").splitlines():
        name, colon, value = line.partition(":")
        if colon and name.strip().lower() in _PLACING:
            lines[name.strip().lower()] = value.strip()
    vectors = [vector for vector in _VECTOR.findall(lines.get("space directions", "")) if vector.lower() != "none"]
    if len(vectors) != dimension or any(vector.count(",") != dimension - 1 for vector in vectors):
        return None
    lines["space directions"] = " ".join(vectors)
    return tuple(f"{name}: {lines[name]}" for name in _PLACING if name in lines)


def restore_placement(file: Path, placement: tuple[str, ...]) -> None:
    """Put lines of :func:`read_placement` into a NRRD file that ITK has written, in place of its own."""
    header, rest = file.read_bytes().split(b"\n\n", 1)
    kept = [line for line in header.decode("latin-1").splitlines() if line.partition(":")[0] not in _PLACING]
    file.write_bytes("\n".join([*kept, *placement]).encode("latin-1") + b"\n\n" + rest)
