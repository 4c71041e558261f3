"""Bottleneck adapters (Houlsby et al. 2019), placed in SAM as Gu et al. (2024, arXiv 2404.09957) place them.

Adapters are attached with forward hooks, as submodules called ``adapter``, so SAM's own parameter names stay as they
are. Unlike there, they begin as zero: the adapted network starts as the pretrained one.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from annotated_types import Interval

from samunet.adaptations.adaptation import BLOCKS, Adaptation, Blocks, Setting, attention_blocks
from samunet.encoders import EncoderFacts

if TYPE_CHECKING:
    from torch import Tensor, nn

_MLP_SCALE = 0.5  # Gu et al.


class AdapterPlan(Adaptation):
    """Frozen encoder and decoder transformer, with bottleneck adapters in both.

    Attributes:
        reduction: Channels of a block divided by those of its bottlenecks.
        blocks: Which of the encoder's attention blocks: ``all``, ``last_half``, or indices.
    """

    title: ClassVar[str] = "bottleneck adapters"
    marker: ClassVar[str] = ".adapter."
    merges: ClassVar[bool] = False

    method: Literal["adapter"] = "adapter"
    reduction: Annotated[
        int, Interval(ge=1, le=1024), Setting("channels by bottleneck channels (default: 4)", metavar="N")
    ] = 4
    blocks: Annotated[Blocks, BLOCKS] = "all"

    def adapt_encoder(self, encoder: nn.Module) -> nn.Module:
        """Freeze an encoder and put two adapters into each planned block, in place.

        One follows the attention's output projection, with a skip; one works beside the MLP, halved, on the MLP's
        input: in SAM tokens that were normalised before, in TinyViT, whose MLP holds its own norm, tokens before that.
        """
        encoder.requires_grad_(False)
        blocks = list(attention_blocks(encoder).values())
        for block in (blocks[index] for index in self.adapted_blocks(len(blocks))):
            channels = block.attn.proj.out_features
            block.attn.proj.add_module("adapter", self._bottleneck(channels))
            block.attn.proj.register_forward_hook(_add_of_output)
            self._put_beside(block.mlp, channels)
        return encoder

    def adapt_decoder(self, decoder: nn.Module) -> None:
        """Freeze the mask decoder's transformer and put adapters into each of its layers, in place.

        One adapter is shared by tokens and image: it acts on the tokens after they attended to the image, and on the
        image after it attended to the tokens, each before the norm. Another works beside the MLP, halved.
        """
        decoder.transformer.requires_grad_(False)
        for layer in decoder.transformer.layers:
            channels = layer.norm2.normalized_shape[0]
            shared = self._bottleneck(channels)
            layer.norm2.add_module("adapter", shared)
            for norm in (layer.norm2, layer.norm4):
                norm.register_forward_pre_hook(_BeforeNorm(shared))
            self._put_beside(layer.mlp, channels)

    def freezes_decoder(self, components: str) -> bool:
        """Always."""
        return True

    def learning_rate(self, facts: EncoderFacts, components: str) -> tuple[float, str]:
        """Gu et al.'s."""
        return 1e-3, self.method

    def kept_values(self, width: int) -> int:
        """Inputs of the adapters, what their activation takes and gives, and not the projection's input."""
        return width + 4 * self._inner(width)

    def added_parameters(self, width: int) -> int:
        """Of two adapters: two linear layers each, with biases."""
        inner = self._inner(width)
        return 2 * (2 * width * inner + width + inner)

    def _inner(self, channels: int) -> int:
        return max(1, channels // self.reduction)

    def _bottleneck(self, channels: int) -> nn.Sequential:
        """Two linear layers with fewer channels between them; zero until trained."""
        from torch import nn

        inner = self._inner(channels)
        layers = {"down": nn.Linear(channels, inner), "activation": nn.GELU(), "up": nn.Linear(inner, channels)}
        nn.init.zeros_(layers["up"].weight)
        nn.init.zeros_(layers["up"].bias)
        return nn.Sequential(OrderedDict(layers))

    def _put_beside(self, mlp: nn.Module, channels: int) -> None:
        mlp.add_module("adapter", self._bottleneck(channels))
        mlp.register_forward_hook(_add_beside_mlp)


class _BeforeNorm:
    """Adds an adapter, with a skip, to a norm's input. Of two norms that share the adapter, one holds it."""

    def __init__(self, adapter: nn.Module) -> None:
        self.adapter = adapter

    def __call__(self, module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        return (inputs[0] + self.adapter(inputs[0]),)


def _add_of_output(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
    return output + module.adapter(output)


def _add_beside_mlp(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
    return output + _MLP_SCALE * module.adapter(inputs[0])
