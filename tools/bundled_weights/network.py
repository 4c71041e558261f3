"""The encoder with all that synthetic images teach, and how it learns."""

from __future__ import annotations

from torch import Tensor, nn

from bundled_weights.contrast import SameRegion
from bundled_weights.draw import Draw
from bundled_weights.prompts import prompt_loss
from bundled_weights.synthesis import SyntheticBatch
from samunet.encoders import EncoderFacts
from samunet.network.encoders import build_encoder
from samunet.network.heads import build_head
from samunet.training.pretraining.options import PERIOD
from samunet.training.pretraining.recipe import MaskedReconstruction, Reconstruction
from samunet.training.recipes.recipe import without_prefix

_MASK_TOKENS = 4  # as every SAM


class PretrainingModel(nn.Module):
    """A SAM, and a small head for each objective that SAM itself has none for.

    Every part is there whatever the objective, so that a later piece may change it.

    Args:
        facts: The encoder to train.
    """

    def __init__(self, facts: EncoderFacts) -> None:
        super().__init__()
        self.image_encoder = build_encoder(facts)
        self.head = build_head("detail", _MASK_TOKENS, self.image_encoder, facts)
        self.head.requires_grad_(True)
        self.head.prompt_encoder.mask_downscaling.requires_grad_(False)  # no mask is ever the prompt here
        self.same_region = SameRegion(facts.embedding // 8)
        self.reconstruction = MaskedReconstruction(facts.embedding, facts.patch_size)

    def sam_state(self) -> dict[str, Tensor]:
        """Encoder, prompt encoder and mask decoder by SAM's names, and ``detail``, in half precision."""
        return {
            f"{part}.{name}": value.detach().half()
            for part, module in self._parts().items()
            for name, value in module.state_dict().items()
        }

    def load_sam_state(self, state: dict[str, Tensor]) -> None:
        """Start from what :meth:`sam_state` gave; the heads of the other objectives stay as they are.

        Raises:
            RuntimeError: If a tensor is missing or of another shape, as in a file with the mask tokens of a dataset.
        """
        for part, module in self._parts().items():
            module.load_state_dict(without_prefix(f"{part}.", state))

    def _parts(self) -> dict[str, nn.Module]:
        return {
            "image_encoder": self.image_encoder,
            "detail": self.head.detail,
            "prompt_encoder": self.head.prompt_encoder,
            "mask_decoder": self.head.mask_decoder,
        }


class Synthetic(Reconstruction):
    """The objectives of :class:`bundled_weights.images.SyntheticOptions`, with a :class:`PretrainingModel`."""

    draw = Draw

    def images(self, batch: SyntheticBatch) -> Tensor:
        """As they are made."""
        return batch.images

    def losses(self, batch: SyntheticBatch, draw: Draw) -> dict[str, Tensor]:
        """Losses of a batch by name: ``dense``, ``prompt``, ``mae``."""
        model, objective, turn = self.model, self.options.objective, self.iteration % PERIOD
        if objective == "mae" or (objective == "mix" and turn == PERIOD - 1):
            return super().losses(batch, draw)
        features = model.image_encoder.features(batch.images)
        losses = {}
        if objective in ("dense", "mix"):
            _, upscaled = model.head.decode(features, batch.images)
            losses["dense"] = model.same_region(upscaled, batch.regions, draw)
        if objective == "prompt" or (objective == "mix" and turn == 0):
            losses["prompt"] = prompt_loss(model.head, features, batch.images, batch.regions, draw)
        return losses
