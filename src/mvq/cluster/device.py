"""The engine for accelerators, in PyTorch: chunked matrix products on the tensors' device.

`|h^.5 o m o (w - c)|^2 = h m w^2 - 2 (h m w) . c + (h m) . c^2`: with `[w, m]` and `[-2c; c^2]` stacked, the
distances of a chunk are one product. The matrix of a chunk is the only large temporary.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_CHUNK_BYTES = 1 << 28


class DeviceEngine:
    """State of one clustering on a PyTorch device.

    Args:
        values: float32 `(n_sub, d)`; pruned lanes may hold anything.
        mask: bool `(n_sub, d)`.
        weights: float32 `(n_sub, d)` importance weights, or None.
        n_codewords: k.
        device: of the tensors.
    """

    def __init__(
        self,
        values: NDArray[np.float32],
        mask: NDArray[np.bool_],
        weights: NDArray[np.float32] | None,
        n_codewords: int,
        device: Any,
    ) -> None:
        import torch

        self.torch = torch
        self.values, self.mask = np.where(mask, values, np.float32(0)), mask
        values = self.values
        self.k = n_codewords
        importance = mask.astype(np.float32) if weights is None else mask * weights
        self._importance = torch.from_numpy(importance).to(device)
        self._weighted = torch.from_numpy(importance * values).to(device)
        self.energy = float((importance.astype(np.float64) * values.astype(np.float64) ** 2).sum())
        self._chunk = max(1, _CHUNK_BYTES // (4 * n_codewords))
        self.reset()

    def reset(self) -> None:
        """Forget all assignments."""
        self._labels = self.torch.full((len(self.values),), -1, device=self._weighted.device)

    def assign(self, codebook: NDArray[np.float32]) -> int:
        """Assign every subvector to its nearest codeword; returns how many assignments changed."""
        torch = self.torch
        self._codebook = codebook
        c = torch.from_numpy(codebook).to(self._weighted.device)
        stacked = torch.cat([-2 * c, c * c], dim=1).T.contiguous()
        labels = torch.empty_like(self._labels)
        for low in range(0, len(labels), self._chunk):
            part = slice(low, low + self._chunk)
            rows = torch.cat([self._weighted[part], self._importance[part]], dim=1)
            labels[part] = (rows @ stacked).argmin(dim=1)
        n_changed = int((labels != self._labels).sum())
        self._labels = labels
        shape = (self.k, self.values.shape[1])
        zeros = torch.zeros(shape, dtype=torch.float64, device=labels.device)
        self.sums = zeros.index_add(0, labels, self._weighted.double()).cpu().numpy()
        self.counts = zeros.index_add(0, labels, self._importance.double()).cpu().numpy()
        self.members = torch.bincount(labels, minlength=self.k).cpu().numpy()
        return n_changed

    @property
    def sse(self) -> float:
        """Error of the last assignment, from the sums."""
        c = self._codebook.astype(np.float64)
        return max(0.0, self.energy + float((c * (c * self.counts - 2 * self.sums)).sum()))

    def labels_and_distances(self) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """`(n_sub,)` assignments and distances."""
        torch = self.torch
        c = torch.from_numpy(self._codebook).to(self._labels.device)
        distances = torch.empty(len(self._labels), device=self._labels.device)
        for low in range(0, len(self._labels), self._chunk):
            part = slice(low, low + self._chunk)
            values = torch.from_numpy(self.values[part]).to(c.device)
            difference = values - c[self._labels[part]]
            distances[part] = (self._importance[part] * difference * difference).sum(dim=1)
        return self._labels.to(torch.int32).cpu().numpy(), distances.cpu().numpy()
