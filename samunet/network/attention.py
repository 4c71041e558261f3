"""Attention of the encoders' blocks: the reference's numbers with less work.

Two differences from segment_anything's forward, neither of which changes the output:

- The reference pads the token grid to whole windows before the qkv projection. A padded token is zero after the norm,
  so its q, k and v are the projection's bias: here only real tokens are projected, and the bias is padded in.
- Scores never exist as a whole: on a CPU they come in chunks (:mod:`samunet.network.chunked_attention`), elsewhere
  PyTorch's fused attention computes them from queries and keys that carry the decomposed relative position.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from samunet.adaptations.projection import project_qkv
from samunet.network.chunked_attention import chunked_attention, key_places
from samunet.network.sam_modules import Attention, get_rel_pos


def block_attention(attention: Attention, tokens: Tensor, window: int) -> Tensor:
    """Self-attention of one encoder block.

    Args:
        attention: SAM's attention module; its ``qkv`` may be a :class:`samunet.adaptations.projection.SplitQKV`.
        tokens: ``(batch, height, width, channels)``, already normalised.
        window: Side of the attention windows in tokens; 0 for global attention.

    Returns:
        Tensor of the shape of ``tokens``.
    """
    heads = attention.num_heads
    sides = (window, window) if window else (tokens.shape[1], tokens.shape[2])
    scores = partial(attend, attention=attention, grid=sides)
    # A padded token is zero after the norm: its projection is the bias.
    attended = in_windows(project_qkv(attention.qkv, tokens), attention.qkv.bias, sides, heads, scores)
    return attention.proj(attended)


def in_windows(
    qkv: Tensor,
    padding: Tensor,
    sides: tuple[int, int],
    heads: int,
    attend: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> Tensor:
    """Attention within windows; the token grid is padded at the bottom and right to whole windows.

    Args:
        qkv: ``(3, batch, height, width, channels)``, from :func:`samunet.adaptations.projection.project_qkv`.
        padding: ``(3 * channels,)`` or ``(3, channels)``, what a padded token is projected to: it takes part in the
            attention.
        sides: Height and width of a window in tokens; those of the grid for global attention.
        heads: Attention heads.
        attend: Attention of q, k and v, each ``(batch * windows * heads, tokens of a window, head channels)`` with the
            heads innermost; returns a tensor of that shape.

    Returns:
        ``(batch, height, width, channels)``.
    """
    _, batch, height, width, channels = qkv.shape
    padded = [-(-length // side) * side for length, side in zip((height, width), sides)]
    qkv = _pad(qkv, padding, padded)
    rows, columns = padded[0] // sides[0], padded[1] // sides[1]
    # Heads and windows become the batch of a matrix product, in one copy.
    parts = qkv.view(3, batch, rows, sides[0], columns, sides[1], heads, channels // heads)
    parts = parts.permute(0, 1, 2, 4, 6, 3, 5, 7).reshape(3, -1, sides[0] * sides[1], channels // heads)
    attended = attend(*parts.unbind())
    attended = attended.view(batch, rows, columns, heads, *sides, channels // heads).permute(0, 1, 4, 2, 5, 3, 6)
    attended = attended.reshape(batch, *padded, channels)
    # A linear layer on a strided view would copy its weight for every row of it.
    return attended[:, :height, :width].contiguous()


def attend(q: Tensor, k: Tensor, v: Tensor, attention: Attention, grid: tuple[int, int]) -> Tensor:
    """Attention with decomposed relative position.

    Args:
        q, k, v: ``(n, height * width, head channels)``, one matrix for every head, window and image.
        attention: Gives scale and relative positions.
        grid: ``(height, width)`` in tokens.

    Returns:
        ``(n, height * width, head channels)``.
    """
    along_h, along_w = relative_positions(q, attention, grid)
    if attention_form(q.device) == "chunked":
        return chunked_attention(q, k, v, along_h, along_w, attention.scale)
    return _fused_attention(q * attention.scale, k, v, along_h, along_w, attention.num_heads)


def attention_form(device: torch.device) -> str:
    """How scores are computed on a device: ``chunked``, or ``fused`` in PyTorch's own attention.

    A graph that is exported for other programs holds PyTorch's own attention, which they know.
    """
    return "chunked" if device.type == "cpu" and not torch.compiler.is_compiling() else "fused"


def _fused_attention(q: Tensor, k: Tensor, v: Tensor, along_h: Tensor, along_w: Tensor, heads: int) -> Tensor:
    """The same without chunks. v is padded because flash attention wants one width of q, k and v; q is scaled."""
    channels = v.shape[-1]
    places = key_places(along_h.shape[-1], along_w.shape[-1], k).expand(k.shape[0], -1, -1)
    q, k = torch.cat([q, along_h, along_w], 2), torch.cat([k, places], 2)
    v = F.pad(v, (0, q.shape[-1] - channels))
    q, k, v = (part.unflatten(0, (-1, heads)) for part in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, scale=1.0)[..., :channels].flatten(0, 1)


def relative_positions(q: Tensor, attention: Attention, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Decomposed relative position (Li et al., MViTv2; SAM's ``add_decomposed_rel_pos``), its two parts.

    Args:
        q: Unscaled queries ``(n, height * width, head channels)``.
        attention: Its tables ``(2 * side - 1, head channels)`` are interpolated where the grid differs.
        grid: ``(height, width)`` in tokens.

    Returns:
        ``(n, height * width, height)`` and ``(n, height * width, width)``: what a query adds to the scores of all keys
        in a row, and of all keys in a column.
    """
    height, width = grid
    count, _, channels = q.shape
    table_h = get_rel_pos(height, height, attention.rel_pos_h).to(q.dtype)
    table_w = get_rel_pos(width, width, attention.rel_pos_w).to(q.dtype)
    places = q.view(count, height, width, channels)
    # One batched product per axis: all queries of row y meet matrix y of the table, and likewise for columns.
    along_h = places.transpose(0, 1).reshape(height, -1, channels) @ table_h.transpose(1, 2)
    along_w = places.permute(2, 0, 1, 3).reshape(width, -1, channels) @ table_w.transpose(1, 2)
    along_h = along_h.view(height, count, width, height).transpose(0, 1).reshape(count, -1, height)
    along_w = along_w.view(width, count, height, width).permute(1, 2, 0, 3).reshape(count, -1, width)
    return along_h, along_w


def _pad(qkv: Tensor, padding: Tensor, padded: list[int]) -> Tensor:
    """Bring ``(3, batch, height, width, c)`` to ``padded`` height and width."""
    padding = padding.to(qkv.dtype).reshape(3, 1, 1, 1, -1)
    for axis in (2, 3):
        shape = list(qkv.shape)
        shape[axis] = padded[axis - 2] - shape[axis]
        if shape[axis]:
            # Concatenation, because its gradient is a view.
            qkv = torch.cat([qkv, padding.expand(shape)], axis)
    return qkv
