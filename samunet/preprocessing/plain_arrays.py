"""Opening stored arrays that may come from a stranger: numbers alone, nothing that names code, plug-ins or files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from samunet.errors import SamunetError


def open_plain(path: Path) -> Any:
    """Open a blosc2 array for reading.

    Raises:
        SamunetError: If it holds more than an array as samunet stores it.
        OSError, RuntimeError, ValueError: If it is missing or damaged.
    """
    import blosc2
    from blosc2.exceptions import UnsafeDeserializationError

    if not path.is_file():  # a folder can be such an array as well, of as many files as it likes
        raise FileNotFoundError(path)
    try:
        array = blosc2.open(str(path), mode="r", dparams={"nthreads": 1})
    except UnsafeDeserializationError as error:
        raise _foreign(path) from error
    if not _is_plain(array):
        raise _foreign(path)
    return array


def _is_plain(array: Any) -> bool:
    import blosc2

    if type(array) is not blosc2.NDArray:
        return False
    packed = array.schunk.cparams
    filters = {blosc2.Filter.NOFILTER, blosc2.Filter.SHUFFLE}
    ours = packed.codec == blosc2.Codec.LZ4 and set(packed.filters) <= filters
    return ours and list(array.schunk.meta) == ["b2nd"] and not list(array.schunk.vlmeta)


def _foreign(path: Path) -> SamunetError:
    return SamunetError(
        f"{path} is no array as samunet stores it, and could run code when it is read",
        "ask where it comes from; to have it made from the images, remove it and run samunet_plan_and_preprocess again",
    )
