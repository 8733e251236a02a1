# SPDX-License-Identifier: Apache-2.0
"""The operators in plain torch: slow, short, differentiable twice, on any device.

All maps are NCHW. A position ``(y, x)`` of the ``(H, W)`` map belongs to the cell
``(floor(y * h / H), floor(x * w / W))`` of the ``(h, w)`` map, and its window is the ``K x K`` neighbourhood of that
cell, row-major, top-left first. What lies outside the map is a zero vector, unless another border is asked for
(:mod:`sapa_mm.ops.borders`): its score is 0 and takes part in the normalisation, its value is 0. Windows may be of any
size.

Queries of one cell share their window. They are therefore gathered by cell into ``(h * rows, w * columns)`` slots, as
many as the fullest cell needs, multiplied with the unfolded window of the cell, and put back in their places. For an
exact ratio both moves are the identity.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .borders import extend
from .checks import (
    check_channel_norm,
    check_deformable_assembly,
    check_deformable_scores,
    check_feature_assembly,
    check_norm_projection,
    check_point_affiliation,
    check_scores,
)
from .maps import EPS, accumulation_dtype, cell_of, memory_format
from .sizes import known


class _Axis:
    """Slots of one axis: position ``p`` is the ``p - first(cell)``-th of its cell."""

    def __init__(self, size: int, cells: int, device):
        cell = cell_of(size, cells, device)
        # The first position of cell c is the least p with p * cells >= c * size. No quotient of a negative number: ONNX
        # rounds those towards zero.
        first = (torch.arange(cells, device=device) * size + cells - 1) // cells
        self.slots = (size + cells - 1) // cells
        self.exact = known(size == cells * self.slots)
        # A cell with fewer positions than slots repeats others; `position_to_slot` never reads those slots.
        self.slot_to_position = (
            (first[:, None] + torch.arange(self.slots, device=device)).clamp_(max=size - 1).flatten()
        )
        self.position_to_slot = cell * self.slots + torch.arange(size, device=device) - first[cell]

    def gather(self, x: Tensor, dim: int) -> Tensor:
        return x if self.exact else x.index_select(dim, self.slot_to_position)

    def scatter(self, x: Tensor, dim: int) -> Tensor:
        return x if self.exact else x.index_select(dim, self.position_to_slot)


class _Cells:
    """Moves ``(N, C, H, W)`` maps to ``(N, C, h, w, slots)`` and back."""

    def __init__(self, size: tuple[int, int], cells: tuple[int, int], device):
        self.cells = cells
        self.rows, self.columns = (_Axis(s, c, device) for s, c in zip(size, cells))

    def group(self, x: Tensor) -> Tensor:
        x = self.columns.gather(self.rows.gather(x, 2), 3)
        x = x.unflatten(3, (self.cells[1], self.columns.slots)).unflatten(2, (self.cells[0], self.rows.slots))
        return x.transpose(3, 4).flatten(4)

    def ungroup(self, x: Tensor) -> Tensor:
        x = x.unflatten(4, (self.rows.slots, self.columns.slots)).transpose(3, 4).flatten(4).flatten(2, 3)
        return self.columns.scatter(self.rows.scatter(x, 2), 3)


def _unfold(x: Tensor, kernel_size: int, border: str = 'zero') -> Tensor:
    """Windows of a map, zeros where they find nothing: ``(N, C, h, w)`` -> ``(N, C, K*K, h, w)``."""
    if border == 'shift':
        (rows, row_inside), (columns, column_inside) = (_shifted(side, kernel_size, x.device) for side in x.shape[2:])
        x = x[:, :, rows].where(row_inside[..., None], x.new_zeros(()))  # (N, C, h, K, w)
        x = x[:, :, :, :, columns].where(column_inside, x.new_zeros(()))  # (N, C, h, K, w, K)
        return x.permute(0, 1, 3, 5, 2, 4).flatten(2, 3)
    x = extend(x, kernel_size // 2, border).unfold(2, kernel_size, 1).unfold(3, kernel_size, 1)
    return x.flatten(4).movedim(4, 2)


def _shifted(size: int, kernel_size: int, device) -> tuple[Tensor, Tensor]:
    """The window of every cell of an axis, ``(size, K)``, moved inwards, and which of it the axis has."""
    first = (torch.arange(size, device=device) - kernel_size // 2).clamp(max=size - kernel_size).clamp(min=0)
    places = first[:, None] + torch.arange(kernel_size, device=device)
    return places.clamp(max=size - 1), places < size


def _empty(x: Tensor, *inputs: Tensor) -> Tensor:
    """Give an empty result the (zero) gradients of its inputs."""
    return x + sum(t.sum() for t in inputs) * 0


def normalize(scores: Tensor, normalization: str, dim: int = 1) -> Tensor:
    """``h(score) / sum h(score)`` along ``dim``; :data:`EPS` joins the sum unless ``h`` is the exponential."""
    if normalization == 'softmax':
        return scores.softmax(dim)
    weights = {'relu': F.relu, 'sigmoid': torch.sigmoid, 'softplus': F.softplus}[normalization](scores)
    return weights / (weights.sum(dim, keepdim=True) + EPS)


def affiliation_scores(query: Tensor, key: Tensor, kernel_size: int, border: str = 'zero', heads: int = 1) -> Tensor:
    """Inner products of every query with its window of keys, before normalisation; keys that the window does not have
    (``'clip'``, ``'shift'``) get minus infinity. ``(N, heads * K*K, H, W)``. See :mod:`sapa_mm.ops`."""
    check_scores(query, key, kernel_size, border=border, heads=heads, limit=None)
    dtype = accumulation_dtype(query.dtype)
    if query.numel() == 0 or key.numel() == 0:
        shape = (query.shape[0], heads * kernel_size**2, *query.shape[2:])
        return _empty(query.new_zeros(shape), query, key)
    cells = _Cells(query.shape[2:], key.shape[2:], query.device)
    queries = cells.group(query.to(dtype)).unflatten(1, (heads, -1))
    keys = _unfold(key.to(dtype), kernel_size, border).unflatten(1, (heads, -1))
    scores = torch.einsum('ngdhwq,ngdkhw->ngkhwq', queries, keys)
    if border in ('clip', 'shift'):
        inside = _unfold(key.new_ones(1, 1, *key.shape[2:]), kernel_size, border)[0, 0] > 0
        scores = scores.where(inside[..., None], scores.new_full((), float('-inf')))
    return cells.ungroup(scores.flatten(1, 2)).to(query.dtype)


def affiliation_kernels(
    query: Tensor,
    key: Tensor,
    kernel_size: int = 5,
    normalization: str = 'softmax',
    border: str = 'zero',
    heads: int = 1,
) -> Tensor:
    """The kernels that :func:`point_affiliation` mixes with. See :mod:`sapa_mm.ops`."""
    check_scores(query, key, kernel_size, normalization, border, heads, limit=None)
    dtype = accumulation_dtype(query.dtype)
    scores = affiliation_scores(query.to(dtype), key.to(dtype), kernel_size, border, heads)
    return normalize(scores.unflatten(1, (heads, -1)), normalization, dim=2).flatten(1, 2).to(query.dtype)


def feature_assembly(
    feature: Tensor, kernels: Tensor, kernel_size: int, groups: int = 1, border: str = 'zero'
) -> Tensor:
    """Weighted sum of a window of features, kernels as given. See :mod:`sapa_mm.ops`."""
    check_feature_assembly(feature, kernels, kernel_size, groups, border, limit=None)
    dtype = accumulation_dtype(feature.dtype)
    size = kernels.shape[2:]
    if feature.numel() == 0 or kernels.numel() == 0:
        return _empty(feature.new_zeros((*feature.shape[:2], *size)), feature, kernels)
    cells = _Cells(size, feature.shape[2:], feature.device)
    weights = cells.group(kernels.to(dtype)).unflatten(1, (groups, kernel_size**2))
    windows = _unfold(feature.to(dtype), kernel_size, border).unflatten(1, (groups, -1))
    assembled = torch.einsum('ngkhwq,ngckhw->ngchwq', weights, windows).flatten(1, 2)
    return cells.ungroup(assembled).to(feature.dtype, memory_format=memory_format(feature))


def point_affiliation(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kernel_size: int = 5,
    normalization: str = 'softmax',
    border: str = 'zero',
    heads: int = 1,
) -> Tensor:
    """SAPA upsampling: :func:`affiliation_kernels`, then :func:`feature_assembly`. See :mod:`sapa_mm.ops`."""
    check_point_affiliation(query, key, value, kernel_size, normalization, border, heads, limit=None)
    dtype = accumulation_dtype(query.dtype)
    kernels = affiliation_kernels(query.to(dtype), key.to(dtype), kernel_size, normalization, border, heads)
    mixed = feature_assembly(value.to(dtype), kernels, kernel_size, heads, border)
    return mixed.to(value.dtype, memory_format=memory_format(value))


def _sample(x: Tensor, offset: Tensor, groups: int) -> Tensor:
    """Bilinear samples at ``offset`` from the cells, zeros outside: ``(N, groups, C / groups, points, H, W)``."""
    places = offset.unflatten(1, (groups, -1, 2))
    rows, columns = (cell_of(s, c, x.device) for s, c in zip(offset.shape[2:], x.shape[2:]))
    # Outside all is zero, however far; grid_sample turns positions into integers, and far ones overflow.
    columns = (places[:, :, :, 0] + columns).clamp(-2, x.shape[3] + 1)
    rows = (places[:, :, :, 1] + rows[:, None]).clamp(-2, x.shape[2] + 1)
    # grid_sample's -1 and 1 are the outer borders of the outer positions.
    places_on_axes = (columns, x.shape[3]), (rows, x.shape[2])
    grid = torch.stack([(at * 2 + 1) / size - 1 for at, size in places_on_axes], -1)  # (N, groups, points, H, W, 2)
    samples = F.grid_sample(
        x.unflatten(1, (groups, -1)).flatten(0, 1), grid.flatten(2, 3).flatten(0, 1), align_corners=False
    )
    return samples.unflatten(2, (places.shape[2], -1)).unflatten(0, (-1, groups))


def deformable_scores(query: Tensor, key: Tensor, offset: Tensor, groups: int = 1) -> Tensor:
    """Inner products of every query with samples of the keys. See :mod:`sapa_mm.ops`."""
    check_deformable_scores(query, key, offset, groups)
    dtype = accumulation_dtype(query.dtype)
    query, key, offset = (x.to(dtype) for x in (query, key, offset))
    if 0 in (query.numel(), key.numel()):
        shape = (offset.shape[0], offset.shape[1] // 2, *offset.shape[2:])
        return _empty(query.new_zeros(shape), query, key, offset)
    query = query.unflatten(1, (groups, -1))
    scores = torch.einsum('ngdhw,ngdphw->ngphw', query, _sample(key, offset, groups))
    return scores.flatten(1, 2).contiguous()


def deformable_assembly(feature: Tensor, kernels: Tensor, offset: Tensor, groups: int = 1) -> Tensor:
    """Weighted sum of samples of the features. See :mod:`sapa_mm.ops`."""
    check_deformable_assembly(feature, kernels, offset, groups)
    dtype = accumulation_dtype(feature.dtype)
    if 0 in (feature.numel(), kernels.numel()):
        return _empty(feature.new_zeros((*feature.shape[:2], *offset.shape[2:])), feature, kernels, offset)
    kernels = kernels.to(dtype).unflatten(1, (groups, -1))
    samples = _sample(feature.to(dtype), offset.to(dtype), groups)
    assembled = torch.einsum('ngphw,ngcphw->ngchw', kernels, samples).flatten(1, 2)
    return assembled.to(feature.dtype, memory_format=memory_format(feature))


def channel_norm(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    """LayerNorm over channels. See :mod:`sapa_mm.ops`."""
    check_channel_norm(x, weight, bias)
    dtype = accumulation_dtype(x.dtype)
    weight, bias = [None if t is None else t.to(dtype) for t in (weight, bias)]
    output = F.layer_norm(x.movedim(1, -1).to(dtype), x.shape[1:2], weight, bias, eps).movedim(-1, 1)
    return output.to(x.dtype, memory_format=memory_format(x))


def norm_projection(x: Tensor, matrix: Tensor, shift: Tensor, eps: float = 1e-5) -> Tensor:
    """LayerNorm over channels, then a 1x1 convolution. See :mod:`sapa_mm.ops`."""
    check_norm_projection(x, matrix, shift)
    wide = x.to(matrix.dtype)
    rstd = (wide.var(1, unbiased=False, keepdim=True) + eps).rsqrt()
    # The mean leaves through the matrix, not the map: no normalised map is written. A product of matrices and no
    # convolution: CUDA computes those of float32 in TF32 unless told not to.
    centred = (matrix - matrix.mean(1, keepdim=True)).expand(x.shape[0], -1, -1)
    projected = torch.bmm(centred, wide.flatten(2)).view(x.shape[0], matrix.shape[0], *x.shape[2:])
    return (projected * rstd + shift[:, None, None]).to(x.dtype, memory_format=memory_format(x))
