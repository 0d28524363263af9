"""Channel-wise autoregressive entropy parameters (ChARM, Minnen & Singh, ICIP 2020): ONE loop over latent slices.

Training, compression and decompression differ only in `code`, the function that returns the decoded values of a slice
for its mean and scale index. A decoder therefore always conditions on the same values as the encoder.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

Index = Callable[[], Tensor]
Code = Callable[[int, Tensor, Index], Tensor]


def slice_net(k: int, width: int) -> nn.Sequential:
    """conv3x3-ReLU-conv3x3-ReLU-conv3x3: hyper features of slice k and its k decoded predecessors -> `width` maps."""
    hidden0 = max(2 * width, 2 * width * (k + 2) // 3)
    hidden1 = max(width, width * (k + 2) // 3)
    widths = [width * (k + 1), hidden0, hidden1, width]
    convs = [nn.Conv2d(a, b, 3, padding=1) for a, b in zip(widths, widths[1:], strict=False)]
    return nn.Sequential(convs[0], nn.ReLU(), convs[1], nn.ReLU(), convs[2])


class ChARM(nn.Module):
    """Mean and scale-index nets of every slice; slice k sees its own hyper features and ALL earlier decoded slices."""

    def __init__(self, channels: int, num_slices: int):
        super().__init__()
        self.width = channels // num_slices
        self.mean_nets = nn.ModuleList(slice_net(k, self.width) for k in range(num_slices))
        self.scale_nets = nn.ModuleList(slice_net(k, self.width) for k in range(num_slices))

    def forward(self, hyper_means: Tensor, hyper_scales: Tensor, code: Code) -> Tensor:
        """(B, M, H, W) hyper means and scales -> y_hat (B, M, H, W), slice by slice.

        `code(k, mu, index)` takes the mean of slice k, (B, M / slices, H, W), and a function that computes its
        continuous scale index when it is called; it returns the decoded values. All have the same shape.
        """
        y_hat: list[Tensor] = []
        slices = zip(hyper_means.split(self.width, 1), hyper_scales.split(self.width, 1), strict=True)
        for k, (means, scales) in enumerate(slices):
            mu = self.mean_nets[k](torch.cat([means, *y_hat], 1))
            index = partial(self.scale_nets[k], torch.cat([scales, *y_hat], 1))
            y_hat.append(code(k, mu, index))
        return torch.cat(y_hat, 1)
