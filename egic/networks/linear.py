"""Linear layers with what follows them: on CPUs without gradients, GELU and residual sum are part of the product."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def linear(layer: nn.Linear, x: Tensor, *, gelu: bool = False, plus: Tensor | None = None) -> Tensor:
    """layer(x), through GELU or added to `plus`: (..., in) -> (..., out). Autocast applies as it does to the layer."""
    if not _fuses(x):
        y = layer(x)
        y = F.gelu(y) if gelu else y
        return y if plus is None else plus + y
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else layer.weight.dtype
    x, weight, bias = x.to(dtype), layer.weight.to(dtype), layer.bias.to(dtype)
    fused = torch.ops.mkldnn._linear_pointwise  # what torch.compile makes of such layers, without its cold start
    if plus is None:
        return fused(x, weight, bias, "gelu" if gelu else "none", [], "none")
    return fused.binary(x, plus.to(dtype), weight, bias, "add")


def _fuses(x: Tensor) -> bool:
    """oneDNN knows float32 and bfloat16 and no gradients; fake tensors (they measure memory) know no such layers."""
    low = x.dtype in (torch.float32, torch.bfloat16) and type(x) is Tensor
    return low and x.device.type == "cpu" and not torch.is_grad_enabled() and torch.backends.mkldnn.is_available()
