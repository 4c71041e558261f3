"""The semantic heads: SAM's mask decoder with one mask token per class or region, without prompts.

``sam`` is the decoder as SAMed uses it. ``detail`` fuses features of the encoder's middle blocks and of a light
convolutional stem on the input into its upscaling, so that borders need not be told from the last tokens alone, and
gives logits at half the input's resolution.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from samunet.encoders import EncoderFacts
from samunet.network.encoders import Features
from samunet.network.encoders.vit import convolution, detail_channels
from samunet.network.sam_modules import MaskDecoder, PromptEncoder, TwoWayTransformer


class SamHead(nn.Module):
    """Class logits from SAM's mask decoder (Kirillov et al. 2023; one token per class: Zhang & Liu 2023, SAMed).

    Of classes, token 0 is the background and all compete in a softmax; regions are independent. Parameter names under
    ``prompt_encoder`` and ``mask_decoder`` are SAM's.

    Args:
        num_outputs: Classes including background, or regions.
        native_grid: Side of the token grid for which the prompt encoder is built (64 in SAM).
        patch_size: Input pixels per token and side.
        embedding: Channels of the encoder's output.
    """

    def __init__(self, num_outputs: int, native_grid: int, patch_size: int, embedding: int = 256) -> None:
        super().__init__()
        self.prompt_encoder = PromptEncoder(
            embed_dim=embedding,
            image_embedding_size=(native_grid, native_grid),
            input_image_size=(native_grid * patch_size, native_grid * patch_size),
            mask_in_chans=16,
        )
        self.mask_decoder = MaskDecoder(
            num_multimask_outputs=num_outputs - 1,
            transformer=TwoWayTransformer(depth=2, embedding_dim=embedding, mlp_dim=2048, num_heads=8),
            transformer_dim=embedding,
        )
        self._freeze_what_gets_no_gradient()

    def forward(self, features: Features, image: Tensor) -> Tensor:
        """Decode class logits.

        Args:
            features: What the image encoder made of the image.
            image: ``(batch, 3, patch h, patch w)``, what the encoder saw.

        Returns:
            ``(batch, num_outputs, 4 h, 4 w)``.
        """
        tokens, upscaled = self.decode(features, image)
        return self.masks(tokens, upscaled)

    def decode(self, features: Features, image: Tensor, prompt: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """SAM's two-way transformer and upscaling.

        Args:
            features, image: See :meth:`forward`.
            prompt: ``(batch, points, channels)`` from the prompt encoder, one set for each image; None for none.

        Returns:
            The tokens ``(batch, 1 + masks + points, channels)``, that of mask quality first, and the features which
            masks are told from, ``(batch, channels / 8, 4 h, 4 w)``.
        """
        decoder = self.mask_decoder
        batch, _, height, width = features.embedding.shape
        tokens = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight]).expand(batch, -1, -1)
        if prompt is not None:
            tokens = torch.cat([tokens, prompt], dim=1)
        with torch.autocast(image.device.type, enabled=False):  # places need more than 16 bits
            positions = self.prompt_encoder.pe_layer((height, width)).unsqueeze(0)
        source = features.embedding + self.prompt_encoder.no_mask_embed.weight.view(1, -1, 1, 1)
        tokens, source = decoder.transformer(source, positions, tokens)
        return tokens, self.upscale(source.transpose(1, 2).reshape(batch, -1, height, width), features, image)

    def masks(self, tokens: Tensor, upscaled: Tensor) -> Tensor:
        """Logits of every mask token, from what :meth:`decode` returned."""
        mlps = self.mask_decoder.output_hypernetworks_mlps
        weights = torch.stack([mlp(tokens[:, 1 + index]) for index, mlp in enumerate(mlps)], dim=1)
        return (weights @ upscaled.flatten(2)).unflatten(2, upscaled.shape[2:])

    def upscale(self, source: Tensor, features: Features, image: Tensor) -> Tensor:
        """Decoded tokens ``(batch, channels, h, w)`` to features ``(batch, channels / 8, 4 h, 4 w)``."""
        return self.mask_decoder.output_upscaling(source)

    def _freeze_what_gets_no_gradient(self) -> None:
        """Prompts and mask-quality prediction play no part here: an optimizer must not see their parameters."""
        self.prompt_encoder.requires_grad_(False)
        self.prompt_encoder.no_mask_embed.requires_grad_(True)
        self.mask_decoder.iou_prediction_head.requires_grad_(False)


class DetailHead(SamHead):
    """SAM's mask decoder with detail from the encoder's depths and from the input (as SAMUS and Dino U-Net restore it).

    What the encoder's middle blocks gave is added to the decoded tokens. Features at 1/8, 1/4 and 1/2 of the input's
    resolution are added where the decoder's upscaling reaches that resolution: those of the encoder's convolutional
    stem, or where it has none of a stem of this head's own. A convolution at each scale mixes both. Where SAM's two
    upscaling steps end above half the resolution, bilinear steps follow.

    Args:
        num_outputs, native_grid, patch_size, embedding: See :class:`SamHead`.
        tap_widths: Channels of each of the encoder's :attr:`~samunet.network.encoders.Features.taps`.
        own_stem: Whether the encoder gives no detail.
    """

    def __init__(
        self,
        num_outputs: int,
        native_grid: int,
        patch_size: int,
        embedding: int = 256,
        *,
        tap_widths: tuple[int, ...] = (),
        own_stem: bool = True,
    ) -> None:
        super().__init__(num_outputs, native_grid, patch_size, embedding)
        channels = detail_channels(patch_size, embedding)
        self.detail = nn.ModuleDict(
            {
                "taps": nn.ModuleList(nn.Linear(width, embedding) for width in tap_widths),
                "stem": nn.ModuleList(
                    convolution(*pair, stride=2) for pair in zip((3, *channels), channels if own_stem else ())
                ),
                "mix": nn.ModuleList(convolution(width, width) for width in reversed(channels)),
            }
        )
        for tap in self.detail["taps"]:  # SAM's own features until training finds use for others
            nn.init.zeros_(tap.weight)
            nn.init.zeros_(tap.bias)

    def upscale(self, source: Tensor, features: Features, image: Tensor) -> Tensor:
        """Decoded tokens to features ``(batch, channels / 8, H / 2, W / 2)`` of an input ``(batch, 3, H, W)``."""
        for layer, tap in zip(self.detail["taps"], features.taps):
            source = source + layer(tap).permute(0, 3, 1, 2)
        details = features.details
        if self.detail["stem"]:
            details = []
            for layer in self.detail["stem"]:
                image = layer(image)
                details.append(image)
        first, norm, activation, second, last_activation = self.mask_decoder.output_upscaling
        steps = [lambda x: activation(norm(first(x))), lambda x: last_activation(second(x))]
        for index, (mix, detail) in enumerate(zip(self.detail["mix"], reversed(details))):
            double = steps[index] if index < len(steps) else _double
            source = double(source) + detail
            source = source + mix(source)
        return source


def build_head(kind: Literal["sam", "detail"], num_outputs: int, encoder: nn.Module, facts: EncoderFacts) -> SamHead:
    """The head of a plan, for an encoder that was built from these facts."""
    sizes = (num_outputs, facts.native_size // facts.patch_size, facts.patch_size, facts.embedding)
    if kind == "sam":
        return SamHead(*sizes)
    return DetailHead(*sizes, tap_widths=encoder.tap_widths, own_stem=not encoder.gives_details)


def _double(features: Tensor) -> Tensor:
    return F.interpolate(features, scale_factor=2, mode="bilinear", align_corners=False)
