"""The semantic heads: SAM's mask decoder with one mask token per class or region, without prompts.

``sam`` is the decoder as SAMed uses it. ``detail`` fuses a light convolutional path on the input into its upscaling, so
that borders need not be told from tokens alone, and gives logits at half the input's resolution.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from samunet.network.adapters import add_decoder_lora
from samunet.network.bottleneck import add_decoder_adapters
from samunet.network.sam_modules import MaskDecoder, PromptEncoder, TwoWayTransformer
from samunet.plans import AdapterPlan, LoraPlan

_GROUPS = 8


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

    def forward(self, embedding: Tensor, image: Tensor) -> Tensor:
        """Decode class logits.

        Args:
            embedding: ``(batch, channels, h, w)`` from the image encoder.
            image: ``(batch, 3, patch h, patch w)``, what the encoder saw.

        Returns:
            ``(batch, num_outputs, 4 h, 4 w)``.
        """
        decoder = self.mask_decoder
        batch, _, height, width = embedding.shape
        tokens = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight]).expand(batch, -1, -1)
        positions = self.prompt_encoder.pe_layer((height, width)).unsqueeze(0)
        source = embedding + self.prompt_encoder.no_mask_embed.weight.view(1, -1, 1, 1)
        tokens, source = decoder.transformer(source, positions, tokens)
        upscaled = self.upscale(source.transpose(1, 2).reshape(batch, -1, height, width), image)
        weights = torch.stack(
            [mlp(tokens[:, 1 + index]) for index, mlp in enumerate(decoder.output_hypernetworks_mlps)], dim=1
        )
        return (weights @ upscaled.flatten(2)).view(batch, -1, *upscaled.shape[2:])

    def upscale(self, source: Tensor, image: Tensor) -> Tensor:
        """Decoded tokens ``(batch, channels, h, w)`` to features ``(batch, channels / 8, 4 h, 4 w)``."""
        return self.mask_decoder.output_upscaling(source)

    def adapt(self, lora: LoraPlan | None, adapter: AdapterPlan | None) -> None:
        """Freeze the transformer and adapt it as planned; all else goes on training (SAMed_s).

        Tokens and hypernetworks are new with every dataset, so nothing that stands after the transformer is frozen.
        """
        if lora and lora.decoder:
            self.mask_decoder.transformer = add_decoder_lora(self.mask_decoder.transformer, lora)
        if adapter:
            add_decoder_adapters(self.mask_decoder.transformer, adapter)

    def _freeze_what_gets_no_gradient(self) -> None:
        """Prompts and mask-quality prediction play no part here: an optimizer must not see their parameters."""
        self.prompt_encoder.requires_grad_(False)
        self.prompt_encoder.no_mask_embed.requires_grad_(True)
        self.mask_decoder.iou_prediction_head.requires_grad_(False)


class DetailHead(SamHead):
    """SAM's mask decoder with a convolutional path from the input (as SAMUS and Dino U-Net restore detail).

    Strided convolutions on the input give features at 1/2, 1/4, ... of its resolution; each is added where the
    decoder's upscaling reaches that resolution, and one more convolution mixes both. Where SAM's two upscaling steps
    end above half the resolution, bilinear steps follow.

    Args:
        num_outputs, native_grid, patch_size, embedding: See :class:`SamHead`.
    """

    def __init__(self, num_outputs: int, native_grid: int, patch_size: int, embedding: int = 256) -> None:
        super().__init__(num_outputs, native_grid, patch_size, embedding)
        # Resolutions that upscaling reaches, coarse to fine, as divisors of the input's.
        self.scales = [scale for scale in (8, 4, 2) if scale < patch_size]
        channels = {scale: embedding // (4 if scale == patch_size // 2 else 8) for scale in self.scales}
        self.path = nn.ModuleList()
        inner = 3
        for scale in reversed(self.scales):
            self.path.append(_convolution(inner, channels[scale], stride=2))
            inner = channels[scale]
        self.mix = nn.ModuleList(_convolution(channels[scale], channels[scale]) for scale in self.scales)

    def upscale(self, source: Tensor, image: Tensor) -> Tensor:
        """Decoded tokens to features ``(batch, channels / 8, H / 2, W / 2)`` of an input ``(batch, 3, H, W)``."""
        details = []
        for layer in self.path:
            image = layer(image)
            details.append(image)
        first, norm, activation, second, last_activation = self.mask_decoder.output_upscaling
        steps = [lambda x: activation(norm(first(x))), lambda x: last_activation(second(x))]
        for index, (mix, detail) in enumerate(zip(self.mix, reversed(details))):
            double = steps[index] if index < len(steps) else _double
            source = double(source) + detail
            source = source + mix(source)
        return source


HEADS: dict[Literal["sam", "detail"], type[SamHead]] = {"sam": SamHead, "detail": DetailHead}


def _convolution(inner: int, outer: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inner, outer, 3, stride=stride, padding=1), nn.GroupNorm(_GROUPS, outer), nn.ReLU())


def _double(features: Tensor) -> Tensor:
    return F.interpolate(features, scale_factor=2, mode="bilinear", align_corners=False)
