"""Exact neighbours and figures against plain loops."""

from __future__ import annotations

import math

import pytest
import torch

from encoder import neighbours


def test_topk_equals_a_full_sort_in_any_chunking(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    base = neighbours.unit(torch.randn(60, 8, generator=generator))
    queries = neighbours.unit(torch.randn(17, 8, generator=generator))
    full = 1 - queries @ base.T
    for budget in (1 << 28, 4 * 60 * 3):
        monkeypatch.setattr(neighbours, "_CHUNK_BYTES", budget)
        distances, rows = neighbours.exact_topk(queries, base, 5)
        for q in range(17):
            order = [i for _, i in sorted((float(full[q, i]), i) for i in range(60))[:5]]
            assert rows[q].tolist() == order
        assert torch.allclose(distances, full.gather(1, rows), atol=1e-6)


def test_topk_gives_ties_to_the_lower_row() -> None:
    base = torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    distances, rows = neighbours.exact_topk(torch.tensor([[1.0, 0.0]]), base, 2)
    assert rows.tolist() == [[1, 2]] and distances.tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize("k", [1, 3, 7, 40, 45])
def test_topk_of_many_ties_equals_a_stable_sort(k: int) -> None:
    generator = torch.Generator().manual_seed(k)
    # Whole numbers, of which many agree; not unit vectors, which the ranking does not need.
    base = torch.randint(-1, 2, (40, 3), generator=generator).float()
    queries = torch.randint(-1, 2, (25, 3), generator=generator).float()
    own, groups = torch.randint(0, 4, (25,), generator=generator), torch.randint(0, 4, (40,), generator=generator)
    distances, rows = neighbours.exact_topk(queries, base, k, own, groups)
    for q in range(25):
        far = [(float(1 - queries[q] @ base[i]), i) for i in range(40) if groups[i] != own[q]]
        expected = sorted(far)[:k]
        lacking = k - len(expected)
        assert rows[q].tolist() == [i for _, i in expected] + [-1] * lacking
        assert distances[q].tolist() == [d for d, _ in expected] + [math.inf] * lacking


def test_topk_never_meets_its_own_group_and_says_where_rows_are_too_few() -> None:
    base = neighbours.unit(torch.randn(6, 4, generator=torch.Generator().manual_seed(1)))
    groups = torch.tensor([0, 0, 0, 0, 1, 1])
    distances, rows = neighbours.exact_topk(base, base, 3, groups, groups)
    assert set(rows[0].tolist()) == {4, 5, -1}
    assert distances[0, 2] == torch.inf
    assert set(rows[5].tolist()) <= {0, 1, 2, 3}
    assert neighbours.exact_topk(base, base[:0], 2)[1].tolist() == [[-1, -1]] * 6


def test_groups_come_together() -> None:
    with pytest.raises(ValueError, match="together"):
        neighbours.exact_topk(torch.ones(1, 2), torch.ones(1, 2), 1, torch.zeros(1))


def test_blank_groups_are_groups_of_their_own() -> None:
    numbers = neighbours.codes(["a", "", "a", "", "b"]).tolist()
    assert numbers[0] == numbers[2] and len(set(numbers)) == 4


def test_vote_is_weighted_and_equal_votes_go_to_the_nearer_class() -> None:
    distances = torch.tensor([[0.1, 0.2, 0.3, 0.4]])
    labels = torch.tensor([[1, 0, 0, 1]])
    winner, shares = neighbours.knn_vote(distances, labels, 3, temperature=None)
    assert winner.tolist() == [1] and shares.tolist() == [[0.5, 0.5, 0.0]]
    winner, shares = neighbours.knn_vote(distances, labels, 3, temperature=0.1)
    weights = [math.exp((0.1 - d) / 0.1) for d in (0.1, 0.2, 0.3, 0.4)]
    expected = (weights[0] + weights[3]) / sum(weights)
    assert winner.tolist() == [1] and shares[0, 1].item() == pytest.approx(expected, abs=1e-6)


def test_vote_skips_what_is_no_neighbour() -> None:
    distances = torch.tensor([[0.1, torch.inf, 0.3], [torch.inf, torch.inf, torch.inf]])
    labels = torch.tensor([[-1, 0, 1], [-1, -1, -1]])
    winner, shares = neighbours.knn_vote(distances, labels, 2)
    assert winner.tolist() == [1, -1] and shares.tolist() == [[0.0, 1.0], [0.0, 0.0]]


def test_balanced_accuracy_counts_classes_alike_and_leaves_absent_ones_out() -> None:
    truth = torch.tensor([0, 0, 0, 0, 2])
    predicted = torch.tensor([0, 0, 0, 1, 0])
    assert neighbours.balanced_accuracy(truth, predicted, 3) == pytest.approx((0.75 + 0.0) / 2)
    assert math.isnan(neighbours.balanced_accuracy(truth[:0], predicted[:0]))


def test_effective_rank_counts_directions() -> None:
    assert neighbours.effective_rank(torch.ones(10, 4)) == pytest.approx(1.0)
    simplex = torch.cat([torch.eye(4), -torch.eye(4)])
    assert neighbours.effective_rank(simplex) == pytest.approx(4.0, abs=1e-4)
    assert neighbours.effective_rank(simplex * torch.tensor([5.0, 1, 1, 1])) == pytest.approx(4.0, abs=1e-4)


def test_auc_equals_counting_pairs() -> None:
    generator = torch.Generator().manual_seed(3)
    scores = torch.randint(0, 5, (40,), generator=generator).float()
    positive = torch.rand(40, generator=generator) < 0.4
    wins = [1.0 if p > n else 0.5 if p == n else 0.0 for p in scores[positive] for n in scores[~positive]]
    assert neighbours.auc(scores, positive) == pytest.approx(sum(wins) / len(wins))
    assert math.isnan(neighbours.auc(scores, torch.ones(40, dtype=torch.bool)))
