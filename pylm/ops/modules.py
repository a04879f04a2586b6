"""The ops as modules, for models that are built from `torch.nn.Module`."""

import torch
from torch import Tensor, nn

from pylm.ops.norm import rms_norm


class RMSNorm(nn.Module):
    """Hold the gain of an `rms_norm`.

    Args:
        dim: D, the normalised dimension.
        eps: added to the mean square.
        weight_offset: added to the weight; the weight starts at 1 - weight_offset.
        device: of the weight.
        dtype: of the weight.
    """

    def __init__(
        self,
        dim: int,
        *,
        eps: float = 1e-6,
        weight_offset: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.eps = eps
        self.weight_offset = weight_offset
        self.weight = nn.Parameter(torch.empty(dim, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the gain to one."""
        nn.init.constant_(self.weight, 1.0 - self.weight_offset)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x (..., D)."""
        return rms_norm(x, self.weight, eps=self.eps, weight_offset=self.weight_offset)

    def extra_repr(self) -> str:
        """Describe the settings for `print(model)`."""
        return f"{self.weight.shape[0]}, eps={self.eps}, weight_offset={self.weight_offset}"
