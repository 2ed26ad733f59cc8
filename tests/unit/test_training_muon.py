import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from training.loop import Recipe
from training.muon import Muon, is_matrix, orthogonal


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 3), st.integers(2, 40), st.integers(2, 40), st.floats(1e-3, 1e3), st.integers(0, 999))
def test_updates_are_about_orthogonal_whatever_their_size(count, rows, columns, scale, seed):
    rows, columns = max(rows, columns), min(rows, columns) // 2 + 1  # well conditioned, so that five rounds are enough
    matrices = torch.randn(count, rows, columns, generator=torch.Generator().manual_seed(seed)) * scale
    for each in (matrices, matrices.mT):
        made = orthogonal(each)
        values = torch.linalg.svdvals(made)
        assert made.shape == each.shape and 0.2 < values.min() and values.max() < 1.35
        # The directions stay: it is the polar factor that is approached.
        assert (made * each).flatten(1).sum(dim=1).min() > 0


def test_muon_solves_least_squares_of_a_matrix_and_a_kernel():
    generator = torch.Generator().manual_seed(0)
    targets = [torch.randn(24, 32, generator=generator), torch.randn(16, 16, 3, 3, generator=generator)]
    found = [torch.nn.Parameter(torch.zeros_like(target)) for target in targets]
    optimizer = Muon(found, lr=0.5)
    for step in range(150):
        optimizer.param_groups[0]["lr"] = 0.5 * (1 - step / 150)
        loss = sum(((a - b) ** 2).mean() for a, b in zip(found, targets, strict=True))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.01


def test_what_touches_images_and_all_vectors_stay_with_adamw():
    first, kernel, norm = torch.nn.Conv2d(8, 64, 3), torch.nn.Conv2d(64, 32, 3), torch.nn.GroupNorm(32, 64)
    assert [is_matrix(layer.weight) for layer in (first, kernel, norm)] == [False, True, False]
    parameters = [*first.parameters(), *kernel.parameters(), *norm.parameters()]
    [adam] = Recipe().optimizers(parameters)
    assert len(adam.param_groups[0]["params"]) == 6
    adam, muon = Recipe(matrix_rate=0.02).optimizers(parameters)
    assert [each.param_groups[0]["full_rate"] for each in (adam, muon)] == pytest.approx([1.2e-3, 0.02])
    assert muon.param_groups[0]["params"] == [kernel.weight]
