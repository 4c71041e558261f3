"""One training at a time in a folder."""

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
def training_lock(
    folder: Path,
    doing: str = "trained",
    remedy: str = "wait until it is done or stop it; other folds can be trained meanwhile",
) -> Iterator[None]:
    """Hold the right to train in ``folder`` while the block runs; see :mod:`samunet.locks`.

    On a file system without locks the training goes on with a warning.

    Args:
        folder: Of a fold or a pretraining; it need not exist yet. What a killed training left half written in it is
            removed.
        doing: What is being done there, for messages.
        remedy: What to do while another process holds it.

    Raises:
        SamunetError: If another process does; says which one, where and since when.
    """
    make_folder(folder.parent)
    with ExitStack() as stack:
        try:
            held = stack.enter_context(exclusive(folder))
        except LockHeld as holder:
            raise SamunetError(f"{folder} is being {doing} by {holder}", remedy) from None
        except OSError as error:
            raise SamunetError(
                f"could not write {error.filename}: {error.strerror}",
                "choose a folder that you may write to; trained models lie in samunet_results",
            ) from error
        if held:
            remove_leftovers(folder, age=0)
        else:
            log.warning("%s cannot be locked: it must not be %s twice at once", folder, doing)
        yield
