"""Exact search by a scan in half precision, on the GPU where there is one, ranked again from the float32 rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from encoder.errors import QueryError
from query.engines.contract import Ask, Hits, Places, Ranking, Take, rank_exactly
from query.engines.scores import ScoredRanking

# bfloat16 has 8 significant bits: rounding a unit vector moves a dot product by at most this, and so does
# rounding the result.
_ROUNDING = 2.0**-8
_COPY_ROWS = 65_536
_SCORE_BYTES = 1 << 30


class HalfExact:
    """Scans a bfloat16 copy of the vectors: half the bytes of the float32 matrix.

    The scores' error is bounded (both operands and the result are rounded once, sums are float32), and was
    measured on some rows when the copy was made; what might belong to the answer is ranked again in
    float64. So the answer is exact.

    Args:
        matrix: unit vectors, float32 [N, dim]; stays where it is, for the ranking.
        places: of the rows.
        device: that holds the copy.
        on_device: whether scores stay on the device; None for everywhere but the CPU.

    Raises:
        QueryError: this device rounds more than the bound allows.
    """

    def __init__(
        self, matrix: NDArray[np.float32], places: Places, device: torch.device, on_device: bool | None = None
    ) -> None:
        self.name = f"resident exact (bfloat16 scan on {device.type}, float64 ranking)"
        self.matrix, self.places, self._device = matrix, places, device
        self._on_device = device.type != "cpu" if on_device is None else on_device
        count, dim = matrix.shape
        self._half = torch.empty((count, dim), dtype=torch.bfloat16, device=device)
        for start in range(0, count, _COPY_ROWS):
            # A copy of a part: the matrix is read-only, which PyTorch warns of.
            part = torch.from_numpy(matrix[start : start + _COPY_ROWS].copy())
            self._half[start : start + _COPY_ROWS] = part.to(device)
        error = 3.01 * _ROUNDING + (dim + 16) * 2.0**-24
        self._slack = 2 * error
        self._check(error)

    @property
    def on_gpu(self) -> bool:
        """Whether the copy lies on a GPU."""
        return self._device.type == "cuda"

    @staticmethod
    def bytes_needed(rows: int, dim: int) -> int:
        """Memory of the copy."""
        return 2 * rows * dim

    def rank(self, asks: Sequence[Ask], allowed: NDArray[np.bool_] | None = None) -> Iterator[Ranking]:
        """See `Engine.rank`."""
        units = torch.from_numpy(np.stack([ask.unit for ask in asks]).astype(np.float32)).to(self._device)
        struck = None if allowed is None or allowed.all() else torch.from_numpy(~allowed).to(self._device)
        # A CPU multiplies a bfloat16 matrix with one vector faster than with several at a time.
        group = 1 if self._device.type == "cpu" else max(1, _SCORE_BYTES // max(1, 4 * len(self.matrix)))
        for start in range(0, len(asks), group):
            part = asks[start : start + group]
            scored = (self._half @ units[start : start + group].to(torch.bfloat16).T).float().T
            for ask, scores in zip(part, scored, strict=True):
                if struck is not None:
                    scores = scores.masked_fill(struck, -torch.inf)
                yield self._ranking(ask, scores)

    def _ranking(self, ask: Ask, scores: torch.Tensor) -> Ranking:
        take = self.matrix.__getitem__
        if self._on_device:
            return _DeviceRanking(ask, scores.contiguous(), take, self.places, self._slack)
        return ScoredRanking(ask, scores.contiguous().numpy(), None, take, self.places, self._slack)

    def _check(self, error: float) -> None:
        """Compare scores of a few rows with float64: a device may sum in less than float32."""
        if not len(self.matrix):
            return
        rows = np.unique(np.linspace(0, len(self.matrix) - 1, 256).astype(np.int64))
        exact = self.matrix[rows].astype(np.float64)
        half = self._half[torch.from_numpy(rows).to(self._device)]
        picked = [0, len(rows) // 2, len(rows) - 1]
        # One query and several are multiplied by different programs.
        for found, asked in (((half @ half[0])[:, None], picked[:1]), (half @ half[picked].T, picked)):
            off = float(np.abs(found.float().cpu().numpy() - exact @ exact[asked].T).max())
            if off > error:
                raise QueryError(
                    f"{self._device} multiplies bfloat16 with errors of {off:.4f}, more than {error:.4f}.",
                    "Search on another device.",
                )


class _DeviceRanking:
    """As `ScoredRanking`, with the scores on a device: only candidates' numbers leave it."""

    def __init__(self, ask: Ask, scores: torch.Tensor, take: Take, places: Places, slack: float) -> None:
        self._ask, self._scores, self._take, self._places, self._slack = ask, scores, take, places, slack

    @property
    def scanned(self) -> int:
        return int(self._scores.numel())

    def best(self, count: int) -> Hits:
        if count < 1 or not self._scores.numel():
            return Hits.none()
        floor = self._scores.topk(min(count, self._scores.numel())).values[-1]
        near = (self._scores >= floor - self._slack) & (self._scores > -torch.inf)
        rows = near.nonzero()[:, 0].cpu().numpy()
        return rank_exactly(self._ask, rows, self._take, self._places, count)

    def strike(self, rows: NDArray[np.int64] | NDArray[np.bool_]) -> None:
        self._scores[torch.from_numpy(np.ascontiguousarray(rows)).to(self._scores.device)] = -torch.inf
