"""Attention on a CPU in chunks that stay in its cache, computed again for the backward pass.

PyTorch's fused attention has no backward pass on a CPU for a bias that needs a gradient, and its fallback keeps every
score in memory. Here no more than a few megabytes of scores exist at a time; what the backward pass keeps is q, k and v.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

_CHUNK_SCORES = 1 << 20
# Adding the bias to scores of bfloat16 is slow where rows of it are shorter than a vector of the CPU: then the bias
# enters through the matrix product.
_SHORT_ROW = 32


def chunked_attention(q: Tensor, k: Tensor, v: Tensor, along_h: Tensor, along_w: Tensor) -> Tensor:
    """``softmax(q k' + bias) v`` with the decomposed bias ``bias[i, (y, x)] = along_h[i, y] + along_w[i, x]``.

    Args:
        q: Scaled queries ``(n, queries, channels)``.
        k, v: Keys and values ``(n, height * width, channels)``.
        along_h, along_w: ``(n, queries, height)`` and ``(n, queries, width)``.

    Returns:
        ``(n, queries, channels)``. Gradients flow to every argument.
    """
    height, width = along_h.shape[-1], along_w.shape[-1]
    if q.dtype is torch.float32 or width >= _SHORT_ROW:
        return _ChunkedAttention.apply(q, k, v, along_h, along_w)
    rows = torch.eye(height, dtype=k.dtype, device=k.device).repeat_interleave(width, 0)
    columns = torch.eye(width, dtype=k.dtype, device=k.device).repeat(height, 1)
    places = torch.cat([rows, columns], 1).expand(len(k), -1, -1)
    return _ChunkedAttention.apply(torch.cat([q, along_h, along_w], 2), torch.cat([k, places], 2), v, None, None)


class _ChunkedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, along_h, along_w):
        ctx.save_for_backward(q, k, v, along_h, along_w)
        out = torch.empty(q.shape[:2] + v.shape[2:], dtype=q.dtype, device=q.device)
        memory = _Buffers(q, 1)
        for chunk, matrix in _chunks(q.shape[0], q.shape[1], k.shape[1]):
            weights = _weights(memory, chunk, matrix, q, k, along_h, along_w)
            torch.matmul(weights, v[matrix], out=out[chunk])
        return out

    @staticmethod
    def backward(ctx, gradient):
        q, k, v, along_h, along_w = ctx.saved_tensors
        gradient, of_k = gradient.contiguous(), ctx.needs_input_grad[1]
        q_grad = torch.empty_like(q)
        h_grad, w_grad = (None if along is None else torch.empty_like(along) for along in (along_h, along_w))
        # Sums over chunks in float32: each chunk's part is rounded only once.
        k_grad, v_grad = torch.zeros_like(k, dtype=torch.float32), torch.zeros_like(v, dtype=torch.float32)
        memory = _Buffers(q, 2)
        for chunk, matrix in _chunks(q.shape[0], q.shape[1], k.shape[1]):
            weights = _weights(memory, chunk, matrix, q, k, along_h, along_w)
            v_grad[matrix] += weights.mT @ gradient[chunk]
            scores_grad = memory.like(weights, 1)
            torch.matmul(gradient[chunk], v[matrix].mT, out=scores_grad)
            torch._softmax_backward_data(scores_grad, weights, -1, weights.dtype, grad_input=scores_grad)
            torch.matmul(scores_grad, k[matrix], out=q_grad[chunk])
            if of_k:
                k_grad[matrix] += scores_grad.mT @ q[chunk]
            if along_h is not None:
                places = scores_grad.unflatten(-1, (along_h.shape[-1], along_w.shape[-1]))
                torch.sum(places, -1, out=h_grad[chunk])
                torch.sum(places, -2, out=w_grad[chunk])
        return q_grad, k_grad.to(k.dtype), v_grad.to(v.dtype), h_grad, w_grad


class _Buffers:
    """Memory for scores that one pass uses again and again: new pages would cost more than the arithmetic."""

    def __init__(self, like: Tensor, count: int) -> None:
        self.memory = [torch.empty(0, dtype=like.dtype, device=like.device) for _ in range(count)]

    def get(self, shape: torch.Size, index: int) -> Tensor:
        size = shape.numel()
        if self.memory[index].numel() < size:
            self.memory[index] = self.memory[index].new_empty(size)
        return self.memory[index][:size].view(shape)

    def like(self, tensor: Tensor, index: int) -> Tensor:
        return self.get(tensor.shape, index)


def _chunks(count: int, queries: int, keys: int) -> Iterator[tuple]:
    """Indices of queries and of the matrices they belong to: several whole matrices, or rows of one."""
    together = _CHUNK_SCORES // (queries * keys)
    if together > 1:
        for start in range(0, count, together):
            yield slice(start, start + together), slice(start, start + together)
        return
    rows = max(1, _CHUNK_SCORES // keys)
    for matrix in range(count):
        for start in range(0, queries, rows):
            yield (matrix, slice(start, start + rows)), matrix


def _weights(memory: _Buffers, chunk, matrix, q: Tensor, k: Tensor, along_h: Tensor | None, along_w) -> Tensor:
    """The softmax of one chunk's scores."""
    queries, keys = q[chunk], k[matrix].mT
    scores = memory.get(queries.shape[:-1] + keys.shape[-1:], 0)
    if along_h is None:
        torch.matmul(queries, keys, out=scores)
    else:
        places = scores.unflatten(-1, (along_h.shape[-1], along_w.shape[-1]))
        torch.add(along_h[chunk].unsqueeze(-1), along_w[chunk].unsqueeze(-2), out=places)
        scores.addmm_(queries, keys) if scores.ndim == 2 else scores.baddbmm_(queries, keys)
    return torch._softmax(scores, -1, False, out=scores)
