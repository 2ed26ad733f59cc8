"""Muon: momentum whose update of every matrix is made orthogonal, so that all of its directions learn at one pace.

Reference: Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024. `torch.optim.Muon` takes
matrices only and rounds them to bfloat16, which most processors are slow at; here kernels count as matrices of
[outputs, inputs] and everything is float32.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the odd polynomial that drives singular values towards 1; five rounds bring all but tiny ones to 0.7..1.2."""
ROUNDS = 5
SMALLEST_SIDE = 16
"""Layers with fewer inputs or outputs touch images and latents; they and all vectors stay with AdamW."""


def is_matrix(parameter: Tensor) -> bool:
    return parameter.ndim >= 2 and min(parameter.shape[:2]) >= SMALLEST_SIDE


def orthogonal(matrices: Tensor) -> Tensor:
    """`[n, rows, columns]`, each about the nearest one with orthonormal rows or columns, by Newton-Schulz."""
    wide = matrices.shape[1] <= matrices.shape[2]
    x = matrices if wide else matrices.mT
    x = x / (x.flatten(1).norm(dim=1).view(-1, 1, 1) + 1e-7)
    a, b, c = COEFFICIENTS
    for _ in range(ROUNDS):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return x if wide else x.mT


class Muon(torch.optim.Optimizer):
    """For parameters that `is_matrix` holds for. `lr` is about the spectral norm of a step."""

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0):
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None) -> None:
        for group in self.param_groups:
            alike = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    alike[parameter.flatten(1).shape].append(parameter)
            for (rows, columns), parameters in alike.items():
                updates = orthogonal(torch.stack([self._momentum(each, group["momentum"]) for each in parameters]))
                step = group["lr"] * max(1.0, rows / columns) ** 0.5
                for parameter, update in zip(parameters, updates, strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.sub_(update.view_as(parameter), alpha=step)

    def _momentum(self, parameter: nn.Parameter, momentum: float) -> Tensor:
        """Nesterov's, as a matrix."""
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        state["momentum"].lerp_(parameter.grad, 1 - momentum)
        return parameter.grad.lerp(state["momentum"], momentum).flatten(1)
