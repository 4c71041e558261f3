"""Further training of an encoder on the images of a dataset: what is hidden of a slice is reconstructed.

Gu et al. (arXiv:2404.09957, fourth finding) further trained SAM without labels on images of the kind that it was then
fine-tuned on, and gained. Here the images are the dataset's own; labels are never read.
"""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from samunet import paths
from samunet.adaptations import FullPlan
from samunet.dataset.description import Description
from samunet.dataset.layout import find_dataset
from samunet.dataset.outputs import check_holdings, check_place
from samunet.encoders import encoder_facts
from samunet.errors import SamunetError, UsageError
from samunet.models.folder import build_network
from samunet.models.pretrained import PretrainedWeights, pretrained_weights
from samunet.planning import resources, rules
from samunet.plans import DEFAULT_PLANS_NAME, ConfigurationPlan, NetworkPlan
from samunet.preprocessing.grid import SliceGrid, about_centre, sample
from samunet.preprocessing.planes import slice_with_context
from samunet.training.pretraining.options import PretrainingOptions
from samunet.training.pretraining.recipe import MaskedReconstruction, Reconstruction
from samunet.training.pretraining.run import DECAY, WEIGHTS
from samunet.training.pretraining.run import pretrain as pretrain_piece
from samunet.training.source import Source
from samunet.workers import default_workers

OBJECTIVE = "mae"
_RATE = 1e-4  # lower than from random weights: there is something to keep
_PASSES = 20  # over all slices, where the user gives no length
_FEWEST_UPDATES = 1000
_DECAY_SHARE = 0.2
_TURN = math.pi / 12
_SCALE = (0.8, 1.25)
_CONTRAST = (0.8, 1.25)
_BRIGHTNESS = 0.1  # deviations of the slice

log = logging.getLogger(__name__)


def pretrain(
    dataset: str | int,
    encoder: str | None = None,
    configuration: str = "2d",
    plans_name: str = DEFAULT_PLANS_NAME,
    *,
    checkpoint: str | Path | None = None,
    output: str | Path | None = None,
    test_images: bool = True,
    num_workers: int | None = None,
    progress: bool = True,
    **settings: Any,
) -> Path:
    """Further train an encoder on a dataset's images, without labels; goes on from what its folder holds.

    Args:
        dataset: Id or name of a preprocessed dataset.
        encoder, configuration, plans_name, checkpoint, test_images, progress: See :class:`OwnImages`.
        output: Folder for checkpoints, log and weights; None for one among the dataset's results.
        num_workers: Processes that preprocess ``imagesTs``; None for a number that suits this machine.
        settings: Fields of :class:`samunet.training.pretraining.options.PretrainingOptions`. Without ``iterations`` and
            ``seconds`` it is a whole pretraining, of 20 passes over the slices at least; the other two that are not
            given, ``batch_size`` and ``learning_rate``, follow memory and weights.

    Returns:
        The file with the weights.

    Raises:
        UsageError: If the options do not fit, or ``output`` lies in a dataset or a model.
        SamunetError: If the dataset is not preprocessed, or weights or images cannot be read.
    """
    name = find_dataset(dataset)
    if output:  # before images are stored
        check_holdings(check_place(Path(output)))
    if settings.get("final_decay") and settings.get("seconds") is None and settings.get("iterations") is None:
        raise UsageError("the length of the decay is not clear", "give either `seconds` or `iterations`")
    work = OwnImages(
        name, encoder, checkpoint and Path(checkpoint), configuration, plans_name, test_images=test_images,
        device=settings.get("device", "auto"), progress=progress,
        num_workers=default_workers() if num_workers is None else num_workers,
    )  # fmt: skip
    folder = Path(output) if output else paths.results_folder() / name / f"pretraining_{work.encoder}"
    settings.setdefault("batch_size", work.batch_size())
    settings.setdefault("learning_rate", work.learning_rate())
    settings["image_sizes"] = (max(work.network.input_shape),)
    if settings.keys() & {"seconds", "iterations"}:
        return pretrain_piece(folder, PretrainingOptions(**settings), work)
    options = PretrainingOptions(**settings, iterations=1)  # looked at before their number is known: 0 images have none
    options = replace(options, iterations=work.updates(options.batch_size))
    log.info("%d updates of %d images; another length: `seconds=T`", options.iterations, options.batch_size)
    return pretrain_without_end_given(folder, options, work)


class OwnImages:
    """An encoder with its weights, and a preprocessed dataset's slices; see :mod:`.work`.

    Args:
        dataset: Full name of a preprocessed dataset.
        encoder: One of the planned ones; None for the one the plans were made for, and else for SAM's where there is a
            GPU and its checkpoint, and for the small one where not.
        checkpoint: Base weights in SAM's layout instead of the published ones.
        configuration, plans_name: Whose normalisation, spacing and input are used.
        test_images: Whether the images of ``imagesTs`` are used as well.
        device: ``auto``, ``cpu``, ...
        num_workers: Processes that preprocess ``imagesTs``.
        progress: Whether to show progress bars.

    Raises:
        SamunetError: If the dataset is not preprocessed, or weights or images cannot be read.
    """

    recipe = Reconstruction
    optimizer = "adamw"  # weights that are good already move little by little

    def __init__(
        self,
        dataset: str,
        encoder: str | None = None,
        checkpoint: Path | None = None,
        configuration: str = "2d",
        plans_name: str = DEFAULT_PLANS_NAME,
        *,
        test_images: bool = True,
        device: str = "auto",
        num_workers: int = 0,
        progress: bool = True,
    ) -> None:
        source = Source(dataset, configuration, plans_name)
        self.configuration, self.description = source.configuration, source.description
        self.network, _ = source.network(encoder, checkpoint, device)
        self.encoder = self.network.encoder
        self.cases = list(source.stored(sorted(source.fingerprint.cases), images_only=True).values())
        numbers = {"imagesTr": len(self.cases)}
        if test_images:
            found = source.test_images(num_workers, progress)
            self.cases, numbers["imagesTs"] = [*self.cases, *found.values()], len(found)
        self.slices = sum(case.shape[0] for case in self.cases)
        self.base = pretrained_weights(self.encoder, checkpoint=checkpoint, may_download=True, progress=progress)
        base = self.base.record
        self._warn_of_statistics()
        self.budget = int(source.plans.gpu_memory_target_gb * 1e9)
        self.setup = {
            "encoder": self.encoder,
            "dataset": dataset,
            "input_shape": list(self.network.input_shape),
            "base": base["sha256"],
        }
        listed = " and ".join(f"{number} cases of {folder}" for folder, number in numbers.items() if number)
        self.facts = {
            "data": f"{self.slices} slices, {listed} of {dataset}; images alone, no labels",
            "base": {key: base[key] for key in ("file", "bytes", "sha256")},
            "input_shape": list(self.network.input_shape),
        }
        log.info("%s on %s", self.encoder, self.facts["data"])
        log.info("at the start: %s", base["file"])

    def build(self) -> ReconstructionModel:
        """See :class:`samunet.training.pretraining.run.Work`."""
        return ReconstructionModel(self.network, self.configuration, self.description, self.base)

    def batch(self, options: PretrainingOptions, iteration: int, device: torch.device) -> Tensor:
        """Slices as the network's input layer gets them in training, ``(batch, channels, height, width)``."""
        items = [self._item(options.seed, iteration, index) for index in range(options.batch_size)]
        return torch.stack(items).to(device)

    def batch_size(self) -> int:
        """Images per update for which the plans' memory is enough, with the whole encoder trained; at most 12."""
        estimate = resources.estimate(
            encoder_facts(self.encoder), self.network.input_shape, FullPlan(),
            checkpoint_blocks=self.network.checkpoint_blocks,
        )  # fmt: skip
        return rules.batch_size(estimate.fixed_bytes, estimate.image_bytes, self.budget)[0][0]

    def learning_rate(self) -> float:
        """After the warm-up."""
        return _RATE

    def updates(self, batch_size: int) -> int:
        """Length of a pretraining for which none is given: 20 passes over the slices, at least 1000 updates."""
        return max(_FEWEST_UPDATES, math.ceil(_PASSES * self.slices / batch_size))

    def _item(self, seed: int, iteration: int, index: int) -> Tensor:
        """A slice, lightly changed: another place, size, side and contrast, but nothing that hides what it shows."""
        draw = np.random.default_rng((seed, iteration, index))
        case = self.cases[draw.integers(len(self.cases))]
        depth, *plane = case.shape
        z = int(draw.integers(depth))
        shape = tuple(self.network.input_shape)
        grid = SliceGrid.of(tuple(plane), case.spacing, self.network.spacing, shape, self.network.stretch)
        start = tuple(draw.uniform(low, high) for low, high in grid.free_range())
        turned = about_centre(shape, draw.uniform(-_TURN, _TURN), math.exp(draw.uniform(*np.log(_SCALE))))
        channels = slice_with_context(case.image, z, depth, self.network.input_channels == "neighbours")
        image = sample(torch.from_numpy(channels[None]), grid.window(start) @ turned, shape)[0]
        flipped = [1 + axis for axis in (0, 1) if draw.random() < 0.5]
        image = image.flip(flipped) if flipped else image
        mean, deviation = float(image.mean()), float(image.std())
        brightness = draw.uniform(-_BRIGHTNESS, _BRIGHTNESS) * deviation
        return (image - mean) * draw.uniform(*_CONTRAST) + mean + brightness

    def _warn_of_statistics(self) -> None:
        facts = encoder_facts(self.encoder)
        if tuple(self.base.record["pixel_mean"]) != facts.pixel_mean:
            log.warning(
                "%s was trained with pixel statistics of its own; from here on it gets those of %s, as `api.train` "
                "gives them to any file that is not a published one", self.base.record["file"], self.encoder,
            )  # fmt: skip


class ReconstructionModel(nn.Module):
    """A network's input layer and encoder, and the layer that reconstructs what is hidden.

    Args:
        network, configuration: Plans.
        description: The dataset's.
        base: Weights at the start.
    """

    def __init__(
        self, network: NetworkPlan, configuration: ConfigurationPlan, description: Description, base: PretrainedWeights
    ) -> None:
        super().__init__()
        facts = encoder_facts(network.encoder)
        everything = network.changed(adaptation=FullPlan(), components="encoder_decoder")
        statistics = {"pixel_mean": list(facts.pixel_mean), "pixel_std": list(facts.pixel_std)}
        base = replace(base, record=base.record | statistics)
        whole = build_network(configuration, everything, description, base)
        self.input_layer = whole.input_layer.requires_grad_(False)
        self.image_encoder = whole.image_encoder
        self.reconstruction = MaskedReconstruction(facts.embedding, facts.patch_size)
        self._others = base.state  # what is not trained comes back as it was

    def train(self, mode: bool = True) -> ReconstructionModel:
        """As any module's, but batch norms keep their statistics: those of images with holes are of no use."""
        super().train(mode)
        self.image_encoder.eval()
        return self

    def sam_state(self) -> dict[str, Tensor]:
        """All tensors by SAM's names, in the number format of the weights at the start."""
        trained = {f"image_encoder.{name}": value for name, value in self.image_encoder.state_dict().items()}
        return {
            name: trained[name].detach().to(value.dtype) if name in trained else value
            for name, value in self._others.items()
        }


def pretrain_without_end_given(folder: Path, options: PretrainingOptions, work: OwnImages) -> Path:
    """A whole pretraining: a constant rate, and over its last fifth the final decay; resumes where it stopped.

    Args:
        folder: See :func:`samunet.training.pretraining.run.pretrain`.
        options: Those of the constant rate; their length is that of the whole.
        work: Encoder and images.

    Returns:
        The file with the weights.
    """
    weights = folder / WEIGHTS.format(work.encoder)
    if weights.is_file():
        raise SamunetError(
            f"{weights} is there already", "go on from before its decay with `seconds=T`, or use `output=FOLDER`"
        )
    decay = max(1, round(options.iterations * _DECAY_SHARE))
    if not (folder / DECAY).is_file():
        pretrain_piece(folder, replace(options, iterations=max(1, options.iterations - decay)), work)
    return pretrain_piece(folder, replace(options, iterations=decay, final_decay=True), work)
