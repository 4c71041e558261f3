"""Attention of SAM's encoder blocks: the reference's numbers with less work.

Two differences from segment_anything's forward, neither of which changes the output:

- The reference pads the token grid to whole windows before the qkv projection. A padded token is zero after the norm,
  so its q, k and v are the projection's bias: here only real tokens are projected, and the bias is padded in.
- Scores and softmax run in PyTorch's fused attention; the decomposed relative position enters as additive bias.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from samunet.network.sam_modules import Attention, get_rel_pos


def block_attention(attention: Attention, tokens: Tensor, window: int) -> Tensor:
    """Self-attention of one encoder block.

    Args:
        attention: SAM's attention module; its ``qkv`` may be a :class:`samunet.network.adapters.SplitQKV`.
        tokens: ``(batch, height, width, channels)``, already normalised.
        window: Side of the attention windows in tokens; 0 for global attention.

    Returns:
        Tensor of the shape of ``tokens``.
    """
    qkv = attention.qkv(tokens)
    attend = partial(_attend, attention)
    # A padded token is zero after the norm.
    attended = in_windows(qkv, attention.qkv.bias, window, attend) if window else attend(qkv)
    return attention.proj(attended)


def in_windows(qkv: Tensor, padding: Tensor, window: int, attend: Callable[[Tensor], Tensor]) -> Tensor:
    """Attention within square windows; the token grid is padded at the bottom and right to whole windows.

    Args:
        qkv: Projected tokens ``(batch, height, width, 3 * channels)``.
        padding: ``(3 * channels,)``, what a padded token is projected to: it takes part in the attention.
        window: Side of the windows in tokens.
        attend: ``(n, window, window, 3 * channels)`` to ``(n, window, window, channels)``.

    Returns:
        ``(batch, height, width, channels)``.
    """
    batch, height, width, channels = qkv.shape
    if height == width == window:
        return attend(qkv)
    padded_height, padded_width = (-(-side // window) * window for side in (height, width))
    if (padded_height, padded_width) != (height, width):
        padded = padding.to(qkv.dtype).expand(batch, padded_height, padded_width, channels).clone()
        padded[:, :height, :width] = qkv
        qkv = padded
    rows, columns = padded_height // window, padded_width // window
    qkv = qkv.view(batch, rows, window, columns, window, channels).transpose(2, 3)
    attended = attend(qkv.reshape(batch * rows * columns, window, window, channels))
    attended = attended.view(batch, rows, columns, window, window, channels // 3).transpose(2, 3)
    attended = attended.reshape(batch, padded_height, padded_width, channels // 3)
    # A linear layer on a strided view would copy its weight for every row of it.
    return attended[:, :height, :width].contiguous()


def _attend(attention: Attention, qkv: Tensor) -> Tensor:
    """Multi-head attention with decomposed relative position: ``(n, h, w, 3 c)`` to ``(n, h, w, c)``."""
    count, height, width, channels = qkv.shape
    channels //= 3
    heads = attention.num_heads
    q, k, v = qkv.view(count, height * width, 3, heads, channels // heads).permute(2, 0, 3, 1, 4)
    bias = relative_position_bias(q, attention.rel_pos_h, attention.rel_pos_w, (height, width))
    attended = attend_with_bias(q, k, v, bias)
    return attended.transpose(1, 2).reshape(count, height, width, channels)


def attend_with_bias(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """Softmax attention with an additive bias on the scores, in the form that is fastest on the device.

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


def relative_position_bias(
    q: Tensor, rel_pos_h: nn.Parameter, rel_pos_w: nn.Parameter, grid: tuple[int, int]
) -> Tensor:
    """Decomposed relative position (Li et al., MViTv2; SAM's ``add_decomposed_rel_pos``) as additive bias.

    Args:
        q: Unscaled queries ``(n, heads, height * width, head channels)``.
        rel_pos_h, rel_pos_w: Tables ``(2 * side - 1, head channels)``; interpolated where the grid differs.
        grid: ``(height, width)`` in tokens.

    Returns:
        ``(n, heads, height * width, height * width)``.
    """
    height, width = grid
    count, heads, _, channels = q.shape
    table_h = get_rel_pos(height, height, rel_pos_h).to(q.dtype)
    table_w = get_rel_pos(width, width, rel_pos_w).to(q.dtype)
    rows = q.reshape(count * heads, height, width, channels)
    # One batched product per axis: all queries of row y meet matrix y of the table, and likewise for columns.
    along_h = rows.transpose(0, 1).reshape(height, -1, channels) @ table_h.transpose(1, 2)
    along_w = rows.permute(2, 0, 1, 3).reshape(width, -1, channels) @ table_w.transpose(1, 2)
    along_h = along_h.view(height, count * heads, width, height).transpose(0, 1).contiguous()
    along_w = along_w.view(width, count * heads, height, width).permute(1, 2, 0, 3).contiguous()
    bias = along_h.unsqueeze(-1) + along_w.unsqueeze(-2)
    return bias.view(count, heads, height * width, height * width)
