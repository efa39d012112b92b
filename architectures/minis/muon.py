"""Muon (Jordan et al. 2024) for many small matrices: those of one shape are orthogonalised together, in float32."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch


class BatchedMuon(torch.optim.Muon):
    """torch's Muon with Nesterov momentum and steps scaled to AdamW's, and a loop over shapes instead of matrices.

    torch iterates in bfloat16, one matrix after another, which takes half of a step's time where the matrices are small
    and the processor has no bfloat16 arithmetic.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Take one step; gradients of parameters that have none are passed by."""
        for group in self.param_groups:
            by_shape: dict[tuple[int, int], list[torch.Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape.setdefault(tuple(parameter.shape), []).append(parameter)
            for shape, parameters in by_shape.items():
                grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
                kept = [self.state[each].setdefault("momentum_buffer", torch.zeros_like(each)) for each in parameters]
                torch._foreach_lerp_(kept, grads, 1 - group["momentum"])
                steps = orthogonalised(
                    torch.stack(grads).lerp(torch.stack(kept), group["momentum"]),
                    group["ns_coefficients"],
                    group["ns_steps"],
                )
                torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
                size = -group["lr"] * 0.2 * math.sqrt(max(shape))
                torch._foreach_add_(parameters, list(steps.unbind()), alpha=size)


def orthogonalised(matrices: torch.Tensor, coefficients: tuple[float, float, float], iterations: int) -> torch.Tensor:
    """Return matrices ``(matrix, row, column)`` with singular values near 1, by Newton-Schulz iterations."""
    tall = matrices.shape[1] > matrices.shape[2]
    wide = matrices.mT if tall else matrices
    wide = wide / wide.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    first, third, fifth = coefficients
    for _ in range(iterations):
        gram = wide @ wide.mT
        wide = torch.baddbmm(wide, torch.baddbmm(gram, gram, gram, beta=third, alpha=fifth), wide, beta=first)
    return wide.mT if tall else wide
