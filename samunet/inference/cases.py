"""Prediction of several cases into one folder."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from samunet.dataset.cases import Case
from samunet.dataset.outputs import check_folder, claim_folder
from samunet.dataset.problems import shortened
from samunet.errors import SamunetError
from samunet.files import make_folder
from samunet.inference.records import made_of_others, refuse_a_mix, sort_cases
from samunet.workers import collecting_failures

if TYPE_CHECKING:
    from samunet.inference.predictor import Predictor

log = logging.getLogger(__name__)

GO_ON = "mend or remove what is named, then run the same again with `skip_existing=True` for what is missing"


def cases_to_do(predictor: Predictor, cases: dict[str, Case], output: Path, *, own: bool = False) -> list[Case]:
    """The cases to be predicted, once ``output`` was found to be a place for their masks, and made.

    Args:
        predictor: What predicts, with its options.
        cases: All that are asked for.
        output: Folder for the masks.
        own: See :meth:`samunet.inference.predictor.Predictor.predict_cases`.

    Raises:
        SamunetError: If the folder is no place for them, or holds masks of another model or of other options beside
            which new ones were to be put.
    """
    todo, options = list(cases.values()), predictor.options
    if own:
        make_folder(output)
    else:
        check_folder(output, overwrite=options.overwrite)
        claim_folder(output)
    if options.skip_existing:
        found = sort_cases(
            todo,
            lambda case: predictor.mask_file(case, output),
            lambda case: predictor.files_beside(case, output),
            predictor.made,
        )
        if own:
            todo = found.todo + [cases[name] for name in found.otherwise]
        else:
            refuse_a_mix(found, output, predictor.made)
            todo = found.todo
        if found.edited:
            log.info("%d masks were edited since they were written, and are kept", len(found.edited))
    if not own:
        targets = [predictor.mask_file(case, output).name for case in todo]
        check_folder(output, targets=targets, overwrite=options.overwrite)
        if others := made_of_others(todo, lambda case: predictor.mask_file(case, output)):
            log.warning(
                "%s: masks of these names were made of other images, or of images that changed since, and are "
                "replaced: %s; images of another patient want another `output`",
                output,
                shortened(others),
            )
    return todo


def predict_into(
    predictor: Predictor, todo: Sequence[Case], output: Path, failures: dict[str, SamunetError], *, progress: bool
) -> list[str]:
    """Predict cases one after the other; those that fail are put into ``failures``. Returns the names of the others.

    Raises:
        FatalError: If the machine fails: a full disk, no memory.
    """
    from tqdm import tqdm

    for case in tqdm(todo, desc="Predicting", unit="case", disable=None if progress else True, leave=False):
        with collecting_failures(failures, case.name):
            predictor.predict_case(case, predictor.mask_file(case, output))
    predictor.intensities.sum_up()
    return [case.name for case in todo if case.name not in failures]
