"""Options of a prediction."""

from __future__ import annotations

from dataclasses import dataclass

from samunet.errors import check_number


@dataclass(frozen=True)
class PredictionOptions:
    """How to predict; none of it changes the model.

    Attributes:
        device: ``auto``, ``cpu``, ``cuda``, ``mps``.
        tta: Test-time augmentation: average over inputs mirrored along the plan's axes and over its planes, or over
            shifted inputs where it has neither. Without it slices are predicted once, along the first plane.
        step_size: Distance of windows as a share of their side.
        save_probabilities: Also write ``CASE.npz`` with half-precision probabilities ``(classes, z, y, x)``.
        measure_uncertainty: Also write ``uncertainty/CASE.json``: what speaks against every class.
        save_uncertainty: Also write that and images of it, ``uncertainty/CASE_entropy`` and, with several folds,
            ``uncertainty/CASE_fold_disagreement``, in percent of the largest possible.
        skip_existing: Keep masks that this model made of the same images with the same options, as their records say.
        overwrite: Replace masks of these names that this program did not write, or that a person has edited since.
        tolerate_geometry: Only warn where the channels of a case differ in origin or direction.
        postprocessing: Apply what the model's folder says was found to help (``postprocessing.json``); probabilities
            are saved as they were before.
    """

    device: str = "auto"
    tta: bool = True
    step_size: float = 0.5
    save_probabilities: bool = False
    measure_uncertainty: bool = False
    save_uncertainty: bool = False
    skip_existing: bool = False
    overwrite: bool = False
    tolerate_geometry: bool = False
    postprocessing: bool = True

    def __post_init__(self) -> None:
        check_number("step_size", self.step_size, least=0.01, most=1)
