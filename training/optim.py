"""Muon for matrices, AdamW for the rest, and the learning-rate schedule.

Muon: Keller Jordan, https://kellerjordan.github.io/posts/muon/ . The update is scaled by
0.2 * sqrt(max(rows, columns)) so that its size matches AdamW's (Moonlight, arXiv 2502.16982).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

# Newton-Schulz coefficients from the Muon post: the slope at zero is as large as stays stable.
_NS_A, _NS_B, _NS_C = 3.4445, -4.7750, 2.0315


def orthogonalise(gradient: Tensor, steps: int = 5) -> Tensor:
    """Nearest semi-orthogonal matrix, approximately, in float32 (these CPUs have no bf16 units)."""
    x: Tensor
    transposed = gradient.shape[-2] > gradient.shape[-1]
    x = gradient.mT if transposed else gradient
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = _NS_A * x + (_NS_B * gram + _NS_C * gram @ gram) @ x
    return x.mT if transposed else x


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised per matrix; matrices of equal shape go through together."""

    def __init__(
        self, params: list[nn.Parameter], lr: float, momentum: float = 0.95, decay: float = 0.05
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "decay": decay})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]  # no closure: the loop never needs one
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[nn.Parameter]] = {}
            for parameter in group["params"]:
                by_shape.setdefault(parameter.shape, []).append(parameter)
            for parameters in by_shape.values():
                self._step_equal_shapes(parameters, group)

    def _step_equal_shapes(self, parameters: list[nn.Parameter], group: dict[str, float]) -> None:
        lr, momentum = group["lr"], group["momentum"]
        updates = []
        for parameter in parameters:
            assert parameter.grad is not None
            state = self.state[parameter]
            buffer = state.setdefault("momentum", torch.zeros_like(parameter))
            buffer.lerp_(parameter.grad, 1 - momentum)
            updates.append(parameter.grad.lerp(buffer, momentum))
        scale = 0.2 * max(parameters[0].shape) ** 0.5
        for parameter, update in zip(parameters, orthogonalise(torch.stack(updates)), strict=True):
            parameter.mul_(1 - lr * group["decay"]).add_(update, alpha=-lr * scale)


def build_optimizers(
    model: nn.Module, matrix_lr: float, other_lr: float
) -> list[torch.optim.Optimizer]:
    """Muon on the layers' matrices; AdamW on the tied embedding and the norm gains."""
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        is_matrix = parameter.ndim == 2 and "embed_tokens" not in name
        (matrices if is_matrix else others).append(parameter)
    adam = torch.optim.AdamW(others, lr=other_lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    optimizers: list[torch.optim.Optimizer] = [Muon(matrices, lr=matrix_lr), adam]
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return optimizers


def learning_rate_factor(progress: float, warmup: float, decay: float) -> float:
    """Warmup, constant, then linear to exactly 0 at progress 1; arguments are shares of a run."""
    if progress < warmup:
        return progress / warmup
    return min(1.0, max(0.0, (1.0 - progress) / decay))


def set_learning_rate(optimizers: list[torch.optim.Optimizer], factor: float) -> None:
    """Set every group to `factor` times its peak."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor
