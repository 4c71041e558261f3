"""Builds the whole network that a plan asks for: input layer, image encoder, head."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from samunet.encoders import SAM_PIXEL_MEAN, SAM_PIXEL_STD, EncoderFacts, encoder_facts
from samunet.errors import SamunetError
from samunet.network.checkpoints import load_base
from samunet.network.encoders import Features, build_encoder
from samunet.network.heads import SamHead, build_head
from samunet.plans import NetworkPlan
from samunet.recipes import recipe_facts


class InputLayer(nn.Module):
    """Stored channels to the three the encoder expects, with the encoder's own pixel statistics.

    Channels on 0-1 are brought to 0-255 and normalised with the statistics the encoder was trained with. Standardised
    channels (z-score, CT) have the mean and deviation of pictures normalised as SAM's are: SAM gets them as they are,
    an encoder pretrained with other statistics (MedSAM: pictures on 0-1) what it would have got of such pictures.

    Args:
        facts: The encoder's facts.
        mapping: ``NetworkPlan.input_channels``.
        num_channels: Stored channels.
        unit_range: Per stored channel, whether its values lie in 0-1.
    """

    def __init__(self, facts: EncoderFacts, mapping: str, num_channels: int, unit_range: list[bool]) -> None:
        super().__init__()
        self.mapping = mapping
        indices = torch.arange(3) if mapping == "as_they_are" else torch.ones(num_channels, dtype=torch.long)
        mean = torch.tensor(facts.pixel_mean)[indices] / 255
        std = torch.tensor(facts.pixel_std)[indices] / 255
        sam_mean, sam_std = (torch.tensor(value)[indices] / 255 for value in (SAM_PIXEL_MEAN, SAM_PIXEL_STD))
        standard_mean, standard_std = (mean - sam_mean) / sam_std, std / sam_std
        if not facts.is_sam:  # it was pretrained on standardised scans
            standard_mean, standard_std = torch.zeros_like(mean), torch.ones_like(std)
        unit = torch.tensor(unit_range)
        self.register_buffer("mean", torch.where(unit, mean, standard_mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.where(unit, std, standard_std).view(1, -1, 1, 1), persistent=False)
        if mapping == "projection":
            self.projection = nn.Conv2d(num_channels, 3, 1)
            nn.init.constant_(self.projection.weight, 1 / num_channels)
            nn.init.zeros_(self.projection.bias)

    def forward(self, image: Tensor) -> Tensor:
        """``(batch, channels, height, width)`` to ``(batch, 3, height, width)``; with neighbours, three come in."""
        image = (image - self.mean) / self.std
        if self.mapping == "projection":
            return self.projection(image)
        return image.expand(-1, 3, -1, -1)


class SamunetModel(nn.Module):
    """Input layer, image encoder and head.

    Attributes:
        has_base: Whether the encoder started from a checkpoint that a fold need not store again. What the bundled
            encoder starts from may change with the package, so its folds are whole.
    """

    def __init__(self, input_layer: InputLayer, image_encoder: nn.Module, head: SamHead, has_base: bool) -> None:
        super().__init__()
        self.input_layer = input_layer
        self.image_encoder = image_encoder
        self.head = head
        self.has_base = has_base

    def forward(
        self, image: Tensor, *, upsample: bool = True, encode: Callable[[Tensor], Features] | None = None
    ) -> Tensor:
        """Class logits, at the network's input resolution or as the head gives them.

        Args:
            image: ``(batch, channels, height, width)`` as the preprocessing made it; with ``neighbours`` the three
                channels are the previous, this and the next slice.
            upsample: False for the head's own resolution (a quarter of the input's for ``sam``).
            encode: Another way to the image encoder's output, from its input; for features that are known already.

        Returns:
            ``(batch, num_outputs, height, width)`` float32.
        """
        prepared = self.input_layer(image)
        logits = self.head((encode or self.image_encoder.features)(prepared), prepared).float()
        if not upsample:
            return logits
        return F.interpolate(logits, size=image.shape[2:], mode="bilinear", align_corners=False)

    def trained_parameters(self) -> dict[str, int]:
        """How many parameters train, by part: ``input_layer``, ``image_encoder``, ``head``."""
        return {
            name: sum(parameter.numel() for parameter in part.parameters() if parameter.requires_grad)
            for name, part in self.named_children()
        }

    def trained_state(self) -> dict[str, Tensor]:
        """The tensors a fold must store: what trains, and without base weights also what stays as it was drawn."""
        state = self.state_dict()
        if not self.has_base:
            return state
        trained = set()
        for prefix, module in self.named_modules():
            own = {name for name, parameter in module.named_parameters(recurse=False) if parameter.requires_grad}
            if own:  # running statistics go with the weights beside them
                own |= {name for name, _ in module.named_buffers(recurse=False)}
            trained |= {f"{prefix}.{name}" if prefix else name for name in own}
        return {name: value for name, value in state.items() if name in trained}

    def load_trained_state(self, state: dict[str, Tensor]) -> None:
        """Restore what :meth:`trained_state` gave.

        Raises:
            SamunetError: As :meth:`check_trained_state`.
        """
        self.check_trained_state(state)
        self.load_state_dict(state, strict=False)

    def check_trained_state(self, state: dict[str, Tensor]) -> None:
        """Check that a trained state is one of this network.

        Raises:
            SamunetError: If a tensor is missing, unknown or has another shape or kind of number than this model's.
        """
        own = self.trained_state()
        wrong = sorted(own.keys() ^ state.keys()) + [
            name
            for name in own.keys() & state.keys()
            if own[name].shape != state[name].shape or own[name].is_floating_point() != state[name].is_floating_point()
        ]
        if wrong:
            raise SamunetError(
                f"the checkpoint does not fit the model: {len(wrong)} tensors are missing, unknown or of another "
                f"shape or type, for example {wrong[0]}",
                "it was trained with other plans or classes; train again, or use the plans beside the checkpoint",
            )


def build_model(
    plan: NetworkPlan,
    *,
    num_outputs: int,
    num_channels: int,
    unit_range: list[bool],
    base_state: dict[str, Tensor] | None = None,
    pixel_statistics: tuple[list[float], list[float]] | None = None,
) -> SamunetModel:
    """Build the network of a plan.

    Args:
        plan: The network's plan.
        num_outputs: Classes including background, or regions.
        num_channels: Channels of the dataset's images.
        unit_range: Per channel, whether stored values lie in 0-1 (see :class:`InputLayer`).
        base_state: State dict in SAM's layout, from :func:`samunet.network.checkpoints.load_sam_checkpoint`.
            Without it the encoder is random.
        pixel_statistics: Mean and deviation per channel, on 0-255, that go with these weights; None for the encoder's.
    """
    facts = encoder_facts(plan.encoder)
    if pixel_statistics:
        facts = replace(facts, pixel_mean=tuple(pixel_statistics[0]), pixel_std=tuple(pixel_statistics[1]))
    if recipe_facts(plan.recipe).values_as_they_are:
        facts = replace(facts, pixel_mean=(0.0, 0.0, 0.0), pixel_std=(255.0, 255.0, 255.0))
        unit_range = [True] * num_channels
    encoder = build_encoder(facts, checkpoint_blocks=plan.checkpoint_blocks)
    head = build_head(plan.head, num_outputs, encoder, facts)
    if base_state is not None:
        load_base(encoder, head, base_state)
    if plan.components == "decoder":
        encoder.requires_grad_(False)
    else:
        encoder = plan.adaptation.adapt_encoder(encoder)
    plan.adaptation.adapt_decoder(head.mask_decoder)
    input_layer = InputLayer(facts, plan.input_channels, num_channels, unit_range)
    return SamunetModel(input_layer, encoder, head, has_base=base_state is not None and facts.is_sam)
