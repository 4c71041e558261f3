"""One training per fold at a time."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from samunet.errors import SamunetError
from samunet.files import make_folder, remove_leftovers
from samunet.locks import LockHeld, exclusive

log = logging.getLogger(__name__)


@contextmanager
def training_lock(folder: Path) -> Iterator[None]:
    """Hold the right to train the fold in ``folder`` while the block runs; see :mod:`samunet.locks`.

    On a file system without locks the training goes on with a warning.

    Args:
        folder: The fold's folder, which need not exist yet. What a killed training left half written in it is removed.

    Raises:
        SamunetError: If another process trains the fold; says which one, where and since when.
    """
    make_folder(folder.parent)
    with ExitStack() as stack:
        try:
            held = stack.enter_context(exclusive(folder))
        except LockHeld as holder:
            raise SamunetError(
                f"{folder} is being trained by {holder}",
                "wait until it is done or stop it; other folds can be trained meanwhile",
            ) from None
        except OSError as error:
            raise SamunetError(
                f"could not write {error.filename}: {error.strerror}",
                "set samunet_results to a folder that you may write to",
            ) from error
        if held:
            remove_leftovers(folder, age=0)
        else:
            log.warning("%s cannot be locked: never train one fold twice at once", folder)
        yield
