"""The semantic head: SAM's mask decoder with one mask token per class, without prompts, as SAMed uses it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from samunet.network.sam_modules import MaskDecoder, PromptEncoder, TwoWayTransformer

UPSCALING = 4  # the mask decoder's two transposed convolutions


class SamHead(nn.Module):
    """Class logits from SAM's mask decoder (Kirillov et al. 2023; one token per class: Zhang & Liu 2023, SAMed).

    Token 0 is the background; all tokens compete in a softmax. Parameter names under ``prompt_encoder`` and
    ``mask_decoder`` are SAM's.

    Args:
        num_classes: Classes including background.
        native_grid: Side of the token grid for which the prompt encoder is built (64 in SAM).
        patch_size: Input pixels per token and side.
        embedding: Channels of the encoder's output.
    """

    def __init__(self, num_classes: int, native_grid: int, patch_size: int, embedding: int = 256) -> None:
        super().__init__()
        self.prompt_encoder = PromptEncoder(
            embed_dim=embedding,
            image_embedding_size=(native_grid, native_grid),
            input_image_size=(native_grid * patch_size, native_grid * patch_size),
            mask_in_chans=16,
        )
        self.mask_decoder = MaskDecoder(
            num_multimask_outputs=num_classes - 1,
            transformer=TwoWayTransformer(depth=2, embedding_dim=embedding, mlp_dim=2048, num_heads=8),
            transformer_dim=embedding,
        )
        self._freeze_what_gets_no_gradient()

    def forward(self, embedding: Tensor) -> Tensor:
        """Decode class logits.

        Args:
            embedding: ``(batch, channels, h, w)`` from the image encoder.

        Returns:
            ``(batch, num_classes, 4 h, 4 w)``.
        """
        decoder = self.mask_decoder
        batch, _, height, width = embedding.shape
        tokens = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight]).expand(batch, -1, -1)
        positions = self.prompt_encoder.pe_layer((height, width)).unsqueeze(0)
        source = embedding + self.prompt_encoder.no_mask_embed.weight.view(1, -1, 1, 1)
        tokens, source = decoder.transformer(source, positions, tokens)
        upscaled = decoder.output_upscaling(source.transpose(1, 2).reshape(batch, -1, height, width))
        weights = torch.stack(
            [mlp(tokens[:, 1 + index]) for index, mlp in enumerate(decoder.output_hypernetworks_mlps)], dim=1
        )
        return (weights @ upscaled.flatten(2)).view(batch, -1, *upscaled.shape[2:])

    def _freeze_what_gets_no_gradient(self) -> None:
        """Prompts and mask-quality prediction play no part here: an optimizer must not see their parameters."""
        self.prompt_encoder.requires_grad_(False)
        self.prompt_encoder.no_mask_embed.requires_grad_(True)
        self.mask_decoder.iou_prediction_head.requires_grad_(False)
