"""Attention of SAM's encoder blocks: the reference's numbers with less work.

Two differences from segment_anything's forward, neither of which changes the output:

- The reference pads the token grid to whole windows before the qkv projection. A padded token is zero after the norm,
  so its q, k and v are the projection's bias: here only real tokens are projected, and the bias is padded in.
- Scores and softmax run in PyTorch's fused attention; the decomposed relative position enters as additive bias.
"""

from __future__ import annotations

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
    batch, height, width, channels = tokens.shape
    qkv = attention.qkv(tokens)
    if window == 0 or height == width == window:
        attended = _attend(attention, qkv)
    else:
        padded_height, padded_width = (-(-side // window) * window for side in (height, width))
        if (padded_height, padded_width) != (height, width):
            padded = attention.qkv.bias.to(qkv.dtype).expand(batch, padded_height, padded_width, 3 * channels).clone()
            padded[:, :height, :width] = qkv
            qkv = padded
        rows, columns = padded_height // window, padded_width // window
        qkv = qkv.view(batch, rows, window, columns, window, 3 * channels).transpose(2, 3)
        attended = _attend(attention, qkv.reshape(batch * rows * columns, window, window, 3 * channels))
        attended = attended.view(batch, rows, columns, window, window, channels).transpose(2, 3)
        attended = attended.reshape(batch, padded_height, padded_width, channels)
        # A linear layer on a strided view would copy its weight for every row of it.
        attended = attended[:, :height, :width].contiguous()
    return attention.proj(attended)


def _attend(attention: Attention, qkv: Tensor) -> Tensor:
    """Multi-head attention with decomposed relative position: ``(n, h, w, 3 c)`` to ``(n, h, w, c)``."""
    count, height, width, channels = qkv.shape
    channels //= 3
    heads = attention.num_heads
    q, k, v = qkv.view(count, height * width, 3, heads, channels // heads).permute(2, 0, 3, 1, 4)
    bias = relative_position_bias(q, attention.rel_pos_h, attention.rel_pos_w, (height, width))
    if bias.device.type == "cpu":
        # PyTorch has no fused backward for a mask with gradient on CPU; its fallback is slower than the plain form.
        attended = torch.softmax((q * attention.scale) @ k.transpose(-2, -1) + bias, dim=-1).to(v.dtype) @ v
    else:
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    return attended.transpose(1, 2).reshape(count, height, width, channels)


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
