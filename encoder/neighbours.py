"""Exact nearest neighbours and what is measured with them; PyTorch only."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

_CHUNK_BYTES = 256 << 20


def unit(vectors: Tensor) -> Tensor:
    """Scale rows [N, D] to unit length in float32; a zero row stays zero."""
    return F.normalize(vectors.float(), dim=-1)


def codes(values: Sequence[str]) -> Tensor:
    """Number texts as int64 [N]: equal texts alike, every blank one a group of its own."""
    numbers: dict[str, int] = {}
    out = []
    for position, text in enumerate(values):
        key = text if text else f"\0{position}"
        out.append(numbers.setdefault(key, len(numbers)))
    return torch.tensor(out, dtype=torch.int64)


def exact_topk(
    queries: Tensor,
    base: Tensor,
    k: int,
    query_groups: Tensor | None = None,
    base_groups: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Find the k nearest rows by cosine distance, exactly and chunk by chunk.

    Args:
        queries: unit rows [Q, D].
        base: unit rows [N, D] on the same device.
        k: neighbours per query.
        query_groups: int64 [Q]; a query never meets base rows of its own group.
        base_groups: int64 [N]; given with `query_groups`.

    Returns:
        Distances float32 [Q, k], ascending, and row numbers int64 [Q, k]; ties go to the lower row.
        Where fewer than k rows remain: infinity and -1.

    Raises:
        ValueError: only one of the two groups is given.
    """
    if (query_groups is None) != (base_groups is None):
        raise ValueError("query_groups and base_groups come together")
    rows = max(1, _CHUNK_BYTES // (4 * max(1, len(base))))
    distances = torch.full((len(queries), k), torch.inf, device=queries.device)
    indices = torch.full((len(queries), k), -1, dtype=torch.int64, device=queries.device)
    found = min(k, len(base))
    if not found:
        return distances, indices
    for start in range(0, len(queries), rows):
        chunk = slice(start, start + rows)
        similarity = queries[chunk].float() @ base.float().T
        if query_groups is not None and base_groups is not None:
            similarity.masked_fill_(query_groups[chunk, None] == base_groups[None, :], -torch.inf)
        values, order = _topk_lowest_row_first(similarity, found)
        order[values == -torch.inf] = -1
        distances[chunk, :found] = 1 - values
        indices[chunk, :found] = order
    return distances, indices


def knn_vote(
    distances: Tensor, labels: Tensor, classes: int, temperature: float | None = 0.07
) -> tuple[Tensor, Tensor]:
    """Let neighbours vote for a class.

    Args:
        distances: cosine distances [Q, k]; infinity where there is no neighbour.
        labels: class of each neighbour, int64 [Q, k]; below 0 casts no vote.
        classes: number of classes C.
        temperature: a vote weighs exp((nearest - distance) / temperature); None lets each weigh one.

    Returns:
        Winning class int64 [Q], -1 where nobody votes, and shares of the vote float32 [Q, C].
        Among classes with equal votes the one with the nearest neighbour wins, then the lower number.
    """
    valid = (labels >= 0) & torch.isfinite(distances)
    reach = distances.double().masked_fill(~valid, torch.inf)
    if temperature is None:
        weights = valid.double()
    else:
        nearest = reach.min(dim=1, keepdim=True).values.nan_to_num(posinf=0.0)
        weights = torch.where(valid, torch.exp((nearest - reach) / temperature), 0.0)
    slots = labels.clamp(min=0)
    votes = torch.zeros(len(distances), classes, dtype=torch.float64, device=distances.device)
    votes.scatter_add_(1, slots, weights)
    closest = torch.full_like(votes, torch.inf).scatter_reduce_(1, slots, reach, "amin")
    leading = votes >= votes.max(dim=1, keepdim=True).values * (1 - 1e-9)
    # min() returns no promised position among equals; argmax over booleans of an exact tie does.
    contest = closest.masked_fill(~leading, torch.inf)
    winner = (leading & (contest == contest.min(dim=1, keepdim=True).values)).int().argmax(dim=1)
    total = votes.sum(dim=1, keepdim=True)
    winner[total[:, 0] == 0] = -1
    return winner, (votes / total.clamp(min=1e-300)).float()


def class_recalls(truth: Tensor, predicted: Tensor, classes: int) -> Tensor:
    """Share of each class that is predicted as such, float64 [C]; NaN for a class without rows."""
    present = torch.bincount(truth, minlength=classes).double()
    right = torch.bincount(truth[predicted == truth], minlength=classes).double()
    return right / torch.where(present > 0, present, torch.nan)


def balanced_accuracy(truth: Tensor, predicted: Tensor, classes: int | None = None) -> float:
    """Mean of the recalls of the classes that occur in `truth` (int64 [N]); NaN without rows."""
    if not len(truth):
        return float("nan")
    count = classes if classes is not None else int(truth.max()) + 1
    return float(class_recalls(truth, predicted, count).nanmean())


def effective_rank(vectors: Tensor) -> float:
    """Number of directions that rows [N, D] spread over: exp of the entropy of their singular values.

    Rows are scaled to unit length and centred first; identical rows give 1.
    """
    rows = unit(vectors)
    singular = torch.linalg.svdvals((rows - rows.mean(dim=0)).double())
    total = singular.sum()
    if total <= 1e-9:
        return 1.0
    shares = singular / total
    return float(torch.exp(-torch.special.xlogy(shares, shares).sum()))


def auc(scores: Tensor, positive: Tensor) -> float:
    """Area under the ROC curve; tied scores count half. NaN unless both kinds occur.

    Args:
        scores: [N], higher for positive.
        positive: bool [N].
    """
    positives, negatives = int(positive.sum()), int((~positive).sum())
    if not positives or not negatives:
        return float("nan")
    _, inverse, counts = torch.unique(scores, return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    mean_rank = (last - (counts.double() - 1) / 2)[inverse]
    above = mean_rank[positive].sum() - positives * (positives + 1) / 2
    return float(above / (positives * negatives))


def _topk_lowest_row_first(similarity: Tensor, k: int) -> tuple[Tensor, Tensor]:
    values, order = similarity.topk(min(k + 1, similarity.shape[1]), dim=1)
    # topk promises nothing about equals: rows with a tie across the k-th place are sorted in full. Excluded ones,
    # at minus infinity, tie as well, and are nobody's neighbours in any order.
    crowded = (values[:, k - 1] == values[:, -1]) & (values[:, -1] > -torch.inf) & (values.shape[1] > k)
    values, order = values[:, :k].contiguous(), order[:, :k].contiguous()
    if crowded.any():
        full_values, full_order = similarity[crowded].sort(dim=1, descending=True, stable=True)
        values[crowded], order[crowded] = full_values[:, :k], full_order[:, :k]
    rows = order.argsort(dim=1, stable=True)
    values, order = values.gather(1, rows), order.gather(1, rows)
    ranks = values.argsort(dim=1, descending=True, stable=True)
    return values.gather(1, ranks), order.gather(1, ranks)
