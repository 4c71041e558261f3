"""MobileSAM's image encoder at any input size: TinyViT (Wu et al. 2022) with SAM's neck (Zhang et al. 2023).

Parameter names are those of the published checkpoint, and so is the output at 1024 x 1024 px. Two things differ from
the published code, neither of which changes the output: only real tokens are projected to q, k and v (a padded one is
zero before its norm, so its projection is one vector for all of them), and a batch normalisation whose statistics are
fixed is folded into the convolution before it, which saves a pass over memory and the tensor kept for it.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from samunet.adaptations import Adaptation
from samunet.adaptations.projection import project_qkv, to_autocast
from samunet.encoders import EncoderFacts, Stage
from samunet.network.attention import in_windows
from samunet.network.encoders.encoder import HALF, Features, Shapes, pairs
from samunet.network.sam_modules import LayerNorm2d

TITLE = "MobileSAM"  # as which its checkpoints are known
_EXPANSION = 4  # of channels, in the MLPs as in the convolutional blocks
_IMAGENET_CLASSES = 1000
# In 16-bit values counted in PyTorch's saved tensors: per token and channel of a block with attention, where everything
# trains also of a convolutional one, and per attention score; per token and channel on both sides of a step to the next
# stage. Measured: bytes that exist for a moment, per token and channel of the first stage.
_VALUES_PER_TOKEN = {"full": 20.0, "lora": 12.1, "adapter": 13.0}
_VALUES_PER_TOKEN_CONVOLVED = 27
_VALUES_PER_SCORE = {"full": 3}  # 1 with any other
_VALUES_PER_TOKEN_BETWEEN = 2.5
_PASSING_BYTES = 28


def build(facts: EncoderFacts, *, checkpoint_blocks: bool = False) -> TinyViT:
    """The encoder of these facts; no plan asks for ``checkpoint_blocks``, which it does not have."""
    return TinyViT(facts)


def fits(facts: EncoderFacts, shapes: Shapes) -> bool:
    """Whether tensors of these shapes are of a checkpoint of this encoder: the only one with such a stem."""
    return "image_encoder.patch_embed.seq.0.c.weight" in shapes


class TinyViT(nn.Module):
    """A convolutional stage, then stages of attention within windows, each on a grid of its own.

    Args:
        facts: The encoder to build; its ``stages`` say all.

    Attributes:
        tap_widths, gives_details: Empty and False; see :class:`samunet.network.encoders.Features`.
        mlp_layers: Names of the linear layers of a block's MLP.
    """

    mlp_layers = ("fc1", "fc2")

    def __init__(self, facts: EncoderFacts) -> None:
        super().__init__()
        stages = facts.stages
        self.tap_widths: tuple[int, ...] = ()
        self.gives_details = False
        self.patch_size = facts.patch_size
        self.patch_embed = PatchEmbedding(stages[0].width)
        self.layers = nn.ModuleList(
            StageLayer(stage, following) for stage, following in zip(stages, [*stages[1:], None])
        )
        width = stages[-1].width
        # TinyViT's classifier is published with the encoder and has no part in it: kept so that checkpoints load
        # strictly and go back out whole, frozen because no gradient reaches it.
        self.norm_head = nn.LayerNorm(width).requires_grad_(False)
        self.head = nn.Linear(width, _IMAGENET_CLASSES).requires_grad_(False)
        self.neck = nn.Sequential(
            nn.Conv2d(width, facts.embedding, 1, bias=False),
            LayerNorm2d(facts.embedding),
            nn.Conv2d(facts.embedding, facts.embedding, 3, padding=1, bias=False),
            LayerNorm2d(facts.embedding),
        )

    def forward(self, image: Tensor) -> Tensor:
        """Encode images.

        Args:
            image: ``(batch, 3, height, width)``, normalised with the encoder's pixel statistics.

        Returns:
            ``(batch, embedding, height / patch, width / patch)``.
        """
        return self.features(image).embedding

    def features(self, image: Tensor) -> Features:
        """Encode images, without taps or details; see :meth:`forward`."""
        # Tokens lie in memory as attention wants them, channels last, and convolutions are no slower for it.
        tokens = self.patch_embed(image.contiguous(memory_format=torch.channels_last))
        for layer in self.layers:
            for step in (*layer.blocks, layer.downsample):
                tokens = tokens if step is None else step(tokens)
        return Features(self.neck(tokens))


class ConvNorm(nn.Module):
    """Convolution without bias and batch normalisation.

    Batch statistics are taken, and running ones updated, only in training mode *and* where the normalisation's own
    weight trains: statistics that drift under frozen weights would change an encoder that is meant to stay as it is.

    Args:
        inner, outer: Channels.
        kernel: Side in pixels; padded to keep the size at a stride of 1.
        stride, groups: Of the convolution.
    """

    def __init__(self, inner: int, outer: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.c = nn.Conv2d(inner, outer, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(outer)

    def forward(self, features: Tensor) -> Tensor:
        """``(batch, inner, h, w)`` to ``(batch, outer, h / stride, w / stride)``."""
        conv, norm = self.c, self.bn
        if self.training and norm.weight.requires_grad:
            return norm(conv(features))
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
        weight = conv.weight * scale.view(-1, 1, 1, 1)
        bias = norm.bias - norm.running_mean * scale
        return F.conv2d(features, weight, bias, conv.stride, conv.padding, groups=conv.groups)


class PatchEmbedding(nn.Module):
    """Two convolutions of stride 2.

    Args:
        width: Channels of the output.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.seq = nn.Sequential(ConvNorm(3, width // 2, 3, stride=2), nn.GELU(), ConvNorm(width // 2, width, 3, 2))

    def forward(self, image: Tensor) -> Tensor:
        """``(batch, 3, height, width)`` to ``(batch, width, height / 4, width / 4)``."""
        return self.seq(image)


class StageLayer(nn.Module):
    """The blocks of one stage, and the way to the next one's grid and width, which the encoder runs one by one.

    Args:
        stage: This stage.
        following: The next one; None after the last.
    """

    def __init__(self, stage: Stage, following: Stage | None) -> None:
        super().__init__()
        block = AttentionBlock if stage.window else ConvolutionalBlock
        self.blocks = nn.ModuleList(block(stage) for _ in range(stage.depth))
        self.downsample = None if following is None else Downsample(stage, following)


class ConvolutionalBlock(nn.Module):
    """MobileNet's inverted residual: widen, convolve each channel, narrow (Sandler et al. 2018).

    Args:
        stage: The stage it belongs to.
    """

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        inner = stage.width * _EXPANSION
        self.conv1 = ConvNorm(stage.width, inner)
        self.conv2 = ConvNorm(inner, inner, 3, groups=inner)
        self.conv3 = ConvNorm(inner, stage.width)

    def forward(self, features: Tensor) -> Tensor:
        """``(batch, channels, h, w)`` to the same shape."""
        return F.gelu(features + self.conv3(F.gelu(self.conv2(F.gelu(self.conv1(features))))))


class Downsample(nn.Module):
    """To the next stage's width and grid (the same grid where the strides are equal).

    Args:
        stage, following: The stages it leads from and to.
    """

    def __init__(self, stage: Stage, following: Stage) -> None:
        super().__init__()
        width = following.width
        self.conv1 = ConvNorm(stage.width, width)
        self.conv2 = ConvNorm(width, width, 3, stride=following.stride // stage.stride, groups=width)
        self.conv3 = ConvNorm(width, width)

    def forward(self, features: Tensor) -> Tensor:
        """``(batch, channels, h, w)`` to the next stage's channels and grid."""
        return self.conv3(F.gelu(self.conv2(F.gelu(self.conv1(features)))))


class AttentionBlock(nn.Module):
    """Attention within windows, a convolution of each channel that connects the windows, and an MLP.

    Args:
        stage: The stage it belongs to.
    """

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self.attn = BiasedAttention(stage.width, stage.heads, stage.window)
        self.mlp = Mlp(stage.width)
        self.local_conv = ConvNorm(stage.width, stage.width, 3, groups=stage.width)

    def forward(self, features: Tensor) -> Tensor:
        """``(batch, channels, h, w)`` to the same shape."""
        tokens = features.permute(0, 2, 3, 1)
        tokens = tokens + self.attn(tokens)
        tokens = self.local_conv(tokens.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return (tokens + self.mlp(tokens)).permute(0, 3, 1, 2)


class Mlp(nn.Module):
    """Norm and two linear layers.

    Args:
        width: Channels.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, width * _EXPANSION)
        self.fc2 = nn.Linear(width * _EXPANSION, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """``(..., channels)`` to the same shape."""
        return self.fc2(F.gelu(self.fc1(self.norm(tokens))))


class BiasedAttention(nn.Module):
    """Self-attention within windows, with one learnt bias per head and distance (LeViT, Graham et al. 2021).

    The fused projection's output channels are head by head (q, k, v of head 0, q, k, v of head 1, ...).

    Args:
        width: Channels.
        num_heads: Attention heads.
        window: Side of the windows in tokens.

    Attributes:
        qkv_groups: Runs of (q, k, v) in the projection's output channels.
    """

    def __init__(self, width: int, num_heads: int, window: int) -> None:
        super().__init__()
        self.num_heads = self.qkv_groups = num_heads
        self.window = window
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.attention_biases = nn.Parameter(torch.zeros(num_heads, window**2))
        y, x = (axis.flatten() for axis in torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij"))
        distances = (y[:, None] - y).abs() * window + (x[:, None] - x).abs()
        self.register_buffer("distances", distances, persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """``(batch, h, w, channels)`` to the same shape."""
        heads, sides = self.num_heads, (self.window, self.window)
        # The published code pads with zeros before the norm, which turns them into its bias.
        padding = project_qkv(self.qkv, to_autocast(self.norm.bias), heads)
        qkv = project_qkv(self.qkv, to_autocast(self.norm(tokens)), heads)
        return self.proj(in_windows(qkv, padding, sides, heads, self._attend))

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """``(n * heads, window^2, head channels)`` each to the same shape."""
        bias = self.attention_biases[:, self.distances].to(q.dtype).unsqueeze(0)
        q, k, v = (part.unflatten(0, (-1, self.num_heads)) for part in (q, k, v))
        return attend_with_bias(q, k, v, bias).flatten(0, 1)


def attend_with_bias(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """Softmax attention with an additive bias on the scores, in the form that is fastest on the device.

    The bias is no sum of two parts as in SAM, and windows are small: chunks would save nothing.

    Args:
        q, k, v: ``(n, heads, tokens, head channels)``, unscaled.
        bias: Broadcastable to ``(n, heads, tokens, tokens)``.

    Returns:
        Tensor of the shape of ``q``.
    """
    if bias.device.type == "cpu":
        # PyTorch has no fused backward for a mask with gradient on CPU; its fallback is slower than the plain form.
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
        return torch.softmax(scores + bias, dim=-1).to(v.dtype) @ v
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)


def weights(facts: EncoderFacts) -> tuple[int, int]:
    """How many are in the blocks, and absolute positions."""
    return sum(12 * stage.depth * stage.width**2 for stage in facts.stages), 0


def block_widths(facts: EncoderFacts) -> list[int]:
    """Channels of every block with attention."""
    return [stage.width for stage in facts.stages if stage.window for _ in range(stage.depth)]


def kept_bytes(
    facts: EncoderFacts,
    input_shape: list[int],
    first: int,
    adaptation: Adaptation,
    device: str,
    checkpoint_blocks: bool = False,
) -> tuple[int, int]:
    """As :func:`samunet.network.encoders.vit.kept_bytes`; device and ``checkpoint_blocks`` change nothing."""
    if adaptation.encoder_trains and first < facts.attention_blocks:
        return sum(
            _block_bytes(stage, input_shape, adaptation) for stage in facts.stages for _ in range(stage.depth)
        ), 0
    # Convolutional blocks come before all attention: no gradient reaches them.
    stages = [stage for stage in facts.stages if stage.window]
    total, index = 0, 0
    for number, stage in enumerate(stages):
        adapted = max(0, index + stage.depth - max(first, index))
        total += adapted * _block_bytes(stage, input_shape, adaptation)
        if adapted and number + 1 < len(stages):
            following = stages[number + 1]
            both = sum(math.prod(side // part.stride for side in input_shape) for part in (stage, following))
            total += round(both * following.width * _VALUES_PER_TOKEN_BETWEEN) * HALF
        index += stage.depth
    start = facts.stages[0]
    tokens = math.prod(side // start.stride for side in input_shape)
    return total, tokens * start.width * _PASSING_BYTES


def _block_bytes(stage: Stage, input_shape: list[int], adaptation: Adaptation) -> int:
    """What one block keeps, on its own grid, padded to whole windows."""
    grid = [side // stage.stride for side in input_shape]
    per_token = _VALUES_PER_TOKEN_CONVOLVED
    if stage.window:
        counted = _VALUES_PER_TOKEN.get(adaptation.method)
        per_token = counted or _VALUES_PER_TOKEN["lora"] + adaptation.kept_values(stage.width) / stage.width
    windows = math.prod(-(-side // stage.window) for side in grid) if stage.window else 0
    scores = windows * stage.window**4 * _VALUES_PER_SCORE.get(adaptation.method, 1)
    return round(math.prod(grid) * stage.width * per_token + scores * stage.heads) * HALF


def operations(facts: EncoderFacts, input_shape: list[int], first: int = 0) -> tuple[float, float]:
    """As :func:`samunet.network.encoders.vit.operations`, by blocks; backward, a block costs 1.3 times its forward."""
    each = []
    for stage in facts.stages:
        grid = [side // stage.stride for side in input_shape]
        scores = math.prod(pairs(side, stage.window) for side in grid) if stage.window else 0
        each += [24.0 * math.prod(grid) * stage.width**2 + 4 * scores * stage.width] * stage.depth
    return sum(each), 1.3 * sum(each[len(each) - facts.attention_blocks :][first:])
