"""Output Residual Prediction (EGIC, section 3.3): one file, any alpha between most faithful and most realistic."""

import copy

from torch import Tensor, nn

from egic.networks.codec import CodecConfig
from egic.networks.transforms import PatchUnpack, SwinStage, Synthesis


class ResidualHead(nn.Module):
    """A copy of g_s's last stage (399,892 parameters at full size) that predicts the MSE picture from its input."""

    def __init__(self, config: CodecConfig):
        super().__init__()
        dim = config.dims[0]
        self.stage = SwinStage(dim, config.depths[0], config.window, PatchUnpack(dim, 3))

    def start_from(self, g_s: Synthesis) -> None:
        """Copy the weights of g_s's last stage. Until the head is trained, alpha then has no effect."""
        self.stage.load_state_dict(copy.deepcopy(g_s.stages[-1].state_dict()))

    def forward(self, h: Tensor, keep: bool = True) -> Tensor:
        """Features of `Synthesis.last_features` (B, H/2, W/2, C) -> x_mse (B, 3, H, W), 0..255, not clipped.

        `keep` as in `SwinStage`.
        """
        return self.stage(h, keep).permute(0, 3, 1, 2).float() * 255


def blend(x_gan: Tensor, x_mse: Tensor, alpha: float) -> Tensor:
    """x_gan + (1 - alpha) (x_mse - x_gan): alpha 0 is the most faithful picture, 1 the most realistic one."""
    return x_gan + (1 - alpha) * (x_mse - x_gan)
