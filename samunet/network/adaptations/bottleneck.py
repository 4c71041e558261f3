"""Bottleneck adapters (Houlsby et al. 2019), placed in SAM as Gu et al. (2024, arXiv 2404.09957) place them.

Adapters are attached with forward hooks, as submodules called ``adapter``, so SAM's own parameter names stay as they
are. Unlike there, they begin as zero: the adapted network starts as the pretrained one.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from samunet.encoders import EncoderFacts
from samunet.network.adaptations.adaptation import Adaptation
from samunet.network.encoders import attention_blocks
from samunet.plans import AdapterPlan, adapted_blocks

_MLP_SCALE = 0.5  # Gu et al.


class Bottleneck(nn.Module):
    """Two linear layers with fewer channels between them; zero until trained.

    Args:
        channels: Of the input and output.
        reduction: ``channels`` divided by the channels in between.
    """

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        self.down = nn.Linear(channels, _inner(channels, reduction))
        self.up = nn.Linear(self.down.out_features, channels)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """``(..., channels)`` to the same shape."""
        return self.up(F.gelu(self.down(tokens)))


def add_encoder_adapters(encoder: nn.Module, plan: AdapterPlan) -> None:
    """Freeze ``encoder`` and put two adapters into each planned block, in place.

    One follows the attention's output projection, with a skip; one works beside the MLP, halved, on the MLP's input:
    in SAM tokens that were normalised before, in TinyViT, whose MLP holds its own norm, tokens before that.
    """
    encoder.requires_grad_(False)
    blocks = list(attention_blocks(encoder).values())
    for block in (blocks[index] for index in adapted_blocks(plan.blocks, len(blocks))):
        channels = block.attn.proj.out_features
        _hang(block.attn.proj, Bottleneck(channels, plan.reduction))
        block.attn.proj.register_forward_hook(_add_of_output)
        _hang(block.mlp, Bottleneck(channels, plan.reduction))
        block.mlp.register_forward_hook(_add_beside_mlp)


def add_decoder_adapters(transformer: nn.Module, plan: AdapterPlan) -> None:
    """Freeze the mask decoder's transformer and put adapters into each of its layers, in place.

    One adapter is shared by tokens and image: it acts on the tokens after they attended to the image, and on the image
    after it attended to the tokens, each before the norm. Another works beside the MLP, halved.
    """
    transformer.requires_grad_(False)
    for layer in transformer.layers:
        channels = layer.norm2.normalized_shape[0]
        shared = Bottleneck(channels, plan.reduction)
        _hang(layer.norm2, shared)
        for norm in (layer.norm2, layer.norm4):
            norm.register_forward_pre_hook(_BeforeNorm(shared))
        _hang(layer.mlp, Bottleneck(channels, plan.reduction))
        layer.mlp.register_forward_hook(_add_beside_mlp)


class _BeforeNorm:
    """Adds an adapter, with a skip, to a norm's input. Of two norms that share the adapter, one holds it."""

    def __init__(self, adapter: Bottleneck) -> None:
        self.adapter = adapter

    def __call__(self, module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        return (inputs[0] + self.adapter(inputs[0]),)


def _hang(module: nn.Module, adapter: Bottleneck) -> None:
    module.add_module("adapter", adapter)


def _add_of_output(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
    return output + module.adapter(output)


def _add_beside_mlp(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
    return output + _MLP_SCALE * module.adapter(inputs[0])


class BottleneckAdapters(Adaptation):
    """Frozen encoder and decoder transformer, with bottleneck adapters in both."""

    name = "adapter"
    title, marker = "bottleneck adapters", ".adapter."
    settings = AdapterPlan

    def adapt_encoder(self, encoder: nn.Module, settings: AdapterPlan) -> nn.Module:
        """See :func:`add_encoder_adapters`."""
        add_encoder_adapters(encoder, settings)
        return encoder

    def adapt_decoder(self, decoder: nn.Module, settings: AdapterPlan) -> None:
        """See :func:`add_decoder_adapters`."""
        add_decoder_adapters(decoder.transformer, settings)

    def freezes_decoder(self, components: str) -> bool:
        """Always."""
        return True

    def learning_rate(self, facts: EncoderFacts, components: str) -> tuple[float, str]:
        """Gu et al.'s."""
        return 1e-3, self.name

    def kept_values(self, width: int, settings: AdapterPlan) -> int:
        """Inputs of the adapters, what their activation takes and gives, and not the projection's input."""
        return width + 4 * _inner(width, settings.reduction)

    def added_parameters(self, width: int, settings: AdapterPlan) -> int:
        """Of two adapters: two linear layers each, with biases."""
        inner = _inner(width, settings.reduction)
        return 2 * (2 * width * inner + width + inner)


def _inner(channels: int, reduction: int) -> int:
    return max(1, channels // reduction)
