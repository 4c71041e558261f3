"""Attention on a CPU in chunks that stay in its cache, computed again for the backward pass.

PyTorch's fused attention has no backward pass on a CPU for a bias that needs a gradient, and its fallback keeps every
score in memory. Here no more than a few megabytes of scores exist at a time; what the backward pass keeps is q, k, v
and the two parts of the bias.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

_CHUNK_BYTES = 1 << 22
# Adding the bias to 16-bit scores is slow where its rows are shorter than a vector of the CPU: then the bias enters
# through the matrix product.
_SHORT_ROW = 32


def chunked_attention(q: Tensor, k: Tensor, v: Tensor, along_h: Tensor, along_w: Tensor, scale: float) -> Tensor:
    """``softmax(scale q k' + bias) v`` with the decomposed bias ``bias[i, (y, x)] = along_h[i, y] + along_w[i, x]``.

    Args:
        q: Queries ``(n, queries, channels)``.
        k, v: Keys and values ``(n, height * width, channels)``.
        along_h, along_w: ``(n, queries, height)`` and ``(n, queries, width)``.
        scale: Of the products.

    Returns:
        ``(n, queries, channels)``. Gradients flow to every tensor.
    """
    return _ChunkedAttention.apply(q, k, v, along_h, along_w, scale)


def key_places(height: int, width: int, like: Tensor) -> Tensor:
    """Row and column of every key, one-hot: ``(height * width, height + width)``.

    ``[scale q, along_h, along_w] [k, places]'`` are scores with the bias in them.
    """
    rows = torch.eye(height, dtype=like.dtype, device=like.device).repeat_interleave(width, 0)
    columns = torch.eye(width, dtype=like.dtype, device=like.device).repeat(height, 1)
    return torch.cat([rows, columns], 1)


class _ChunkedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, along_h, along_w, scale):
        ctx.save_for_backward(q, k, v, along_h, along_w)
        ctx.scale = scale
        out = torch.empty(q.shape[:2] + v.shape[2:], dtype=q.dtype, device=q.device)
        scores = _Scores(q, k, along_h, along_w, scale)
        for chunk, matrix in _chunks(len(q), q.shape[1], k.shape[1], _CHUNK_BYTES // q.itemsize):
            _, _, weights = scores.softmax(chunk, matrix)
            torch.matmul(weights, v[matrix], out=out[chunk])
        return out

    @staticmethod
    def backward(ctx, gradient):
        q, k, v, along_h, along_w = ctx.saved_tensors
        gradient, of_k = gradient.contiguous(), ctx.needs_input_grad[1]
        channels, height, width = q.shape[-1], along_h.shape[-1], along_w.shape[-1]
        q_grad, h_grad, w_grad = (torch.empty_like(tensor) for tensor in (q, along_h, along_w))
        # Sums over chunks in float32: each chunk's part is rounded only once.
        k_grad, v_grad = (torch.zeros_like(tensor, dtype=torch.float32) for tensor in (k, v))
        scores = _Scores(q, k, along_h, along_w, ctx.scale)
        for chunk, matrix in _chunks(len(q), q.shape[1], k.shape[1], _CHUNK_BYTES // q.itemsize):
            queries, keys, weights = scores.softmax(chunk, matrix)
            v_grad[matrix] += weights.mT @ gradient[chunk]
            change = scores.gradient(weights, gradient[chunk], v[matrix])
            if of_k:
                k_grad[matrix] += change.mT @ queries[..., :channels]
            if scores.places is None:
                torch.matmul(change, keys, out=q_grad[chunk])
                grid = change.unflatten(-1, (height, width))
                torch.sum(grid, -1, out=h_grad[chunk])
                torch.sum(grid, -2, out=w_grad[chunk])
            else:
                parts = (change @ keys).split([channels, height, width], -1)
                q_grad[chunk], h_grad[chunk], w_grad[chunk] = parts
        return q_grad.mul_(ctx.scale), k_grad.to(k.dtype), v_grad.to(v.dtype), h_grad, w_grad, None


class _Scores:
    """Scores of one chunk after another in the same memory: new pages would cost more than the arithmetic."""

    def __init__(self, q: Tensor, k: Tensor, along_h: Tensor, along_w: Tensor, scale: float) -> None:
        self.q, self.k, self.along_h, self.along_w, self.scale = q, k, along_h, along_w, scale
        self.grid = along_h.shape[-1], along_w.shape[-1]
        short = self.grid[1] < _SHORT_ROW and q.dtype is not torch.float32
        self.places = key_places(*self.grid, k) if short else None
        self.memory = [q.new_empty(0), q.new_empty(0)]

    def softmax(self, chunk, matrix) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys, and the softmax of their scores; the first two are widened where they hold the bias."""
        queries, keys = self.q[chunk] * self.scale, self.k[matrix]
        along_h, along_w = self.along_h[chunk], self.along_w[chunk]
        if self.places is not None:
            queries = torch.cat([queries, along_h, along_w], -1)
            keys = torch.cat([keys, self.places.expand(*keys.shape[:-2], -1, -1)], -1)
        scores = self._buffer(queries.shape[:-1] + keys.shape[-2:-1], 0)
        if self.places is not None:
            torch.matmul(queries, keys.mT, out=scores)
        else:
            torch.add(along_h.unsqueeze(-1), along_w.unsqueeze(-2), out=scores.unflatten(-1, self.grid))
            scores.addmm_(queries, keys.mT) if scores.ndim == 2 else scores.baddbmm_(queries, keys.mT)
        return queries, keys, torch._softmax(scores, -1, False, out=scores)

    def gradient(self, weights: Tensor, gradient: Tensor, v: Tensor) -> Tensor:
        """Gradient of the scores from that of the output."""
        change = self._buffer(weights.shape, 1)
        torch.matmul(gradient, v.mT, out=change)
        return torch._softmax_backward_data(change, weights, -1, weights.dtype, grad_input=change)

    def _buffer(self, shape: torch.Size, index: int) -> Tensor:
        size = shape.numel()
        if self.memory[index].numel() < size:
            self.memory[index] = self.memory[index].new_empty(size)
        return self.memory[index][:size].view(shape)


def _chunks(count: int, queries: int, keys: int, scores: int) -> Iterator[tuple]:
    """Indices of queries and of the matrices they belong to: several whole matrices, or rows of one.

    Args:
        count, queries, keys: Matrices, and the shape of each.
        scores: At most so many in a chunk, but at least a row.
    """
    together = scores // (queries * keys)
    if together > 1:
        for start in range(0, count, together):
            yield slice(start, start + together), slice(start, start + together)
        return
    rows = max(1, scores // keys)
    for matrix in range(count):
        for start in range(0, queries, rows):
            yield (matrix, slice(start, start + rows)), matrix
