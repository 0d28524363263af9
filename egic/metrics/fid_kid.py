"""FID and KID of two sets of pictures: how alike the sets look, whatever pictures they hold.

As in HiFiC (arXiv 2006.09965): every patch of a grid, and of the grid shifted by half a patch both ways, of 8-bit
pictures; patches of 256 pixels for FID/256 and KID/256, of 64 pixels for FID/64 and KID/64, of which small sets of
pictures have enough (24 Kodak pictures: 4,152).

Features (2048 numbers a patch, 8 KB) are computed picture by picture and kept, since KID needs them all; pictures are
not. The network and both formulas are torch-fidelity's.
"""

import io

import numpy as np
import torch
from torch import Tensor, nn

from egic.errors import UserError

PATCH_OF = {"fid256": 256, "kid256": 256, "fid64": 64, "kid64": 64}
"""Measure -> side of its patches in pixels."""
NAMES = tuple(PATCH_OF)
"""Columns of the measures, in order."""
NETWORK = "inception"
"""The network of `egic.metrics.pretrained` they run on."""
RELIABLE_PATCHES = 4096
"""Twice the 2048 dimensions of a feature. With fewer patches FID is biased upwards too much to be reported; the bias
shrinks with the number of patches, so only figures of equally many patches compare."""
_KID_SUBSETS, _KID_SUBSET_SIZE = 100, 1000  # the usual ones; smaller sets are taken whole


def corners(height: int, width: int, patch: int) -> list[tuple[int, int]]:
    """(top, left) of every patch of a picture, the grid first, then the shifted grid; empty for a small picture."""
    return [
        (top, left)
        for start in (0, patch // 2)
        for top in range(start, height - patch + 1, patch)
        for left in range(start, width - patch + 1, patch)
    ]


class Features:
    """Inception's pooled features of pictures. state: as from `pretrained.find("inception")`. Raises UserError."""

    def __init__(self, state: dict[str, Tensor], device: str | torch.device = "cpu"):
        self.device = torch.device(device)
        network = _inception(state).to(memory_format=torch.channels_last)  # a third faster on CPUs
        self.network = network.to(self.device)

    @torch.inference_mode()
    def __call__(self, x: np.ndarray, patch: int, batch: int = 8) -> np.ndarray:
        """uint8 (H, W, 3) -> float32 (patches, 2048) of patches with `patch` pixels a side."""
        found = [np.zeros((0, 2048), np.float32)]
        places = corners(x.shape[0], x.shape[1], patch)
        for i in range(0, len(places), batch):
            patches = np.stack([x[top : top + patch, left : left + patch] for top, left in places[i : i + batch]])
            (features,) = self.network(torch.from_numpy(patches).permute(0, 3, 1, 2).to(self.device))
            found.append(features.float().cpu().numpy())
        return np.concatenate(found)


def _inception(state: dict[str, Tensor]) -> nn.Module:
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ImportError as e:
        raise UserError(f"FID and KID need the package torch-fidelity ({e}): pip install 'egic[train]'") from e
    file = io.BytesIO()  # it unpickles its file, so it gets one that we have read safely and written ourselves
    torch.save(state, file)
    file.seek(0)
    try:
        return FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=file)
    except RuntimeError as e:
        raise UserError(f"these are not the weights of FID's Inception ({str(e).splitlines()[0]})") from e


def fid(features: np.ndarray, original: np.ndarray) -> float | None:
    """Frechet distance of two sets' features (patches, 2048); None with fewer than 2 patches."""
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric

    if min(len(features), len(original)) < 2:
        return None
    stats = [fid_features_to_statistics(torch.from_numpy(f).double()) for f in (features, original)]
    return fid_statistics_to_metric(*stats, verbose=False)[KEY_METRIC_FID]


def kid(features: np.ndarray, original: np.ndarray) -> float | None:
    """Kernel distance (unbiased, so a little below 0 for equal sets; not times 1000); None with fewer than 2 patches.

    The mean over 100 subsets of 1000 patches, drawn from a fixed seed; fewer patches are taken whole.
    """
    from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric

    size = min(len(features), len(original), _KID_SUBSET_SIZE)
    if size < 2:
        return None
    subsets = _KID_SUBSETS if max(len(features), len(original)) > size else 1
    pair = [torch.from_numpy(f).double() for f in (features, original)]
    found = kid_features_to_metric(*pair, kid_subset_size=size, kid_subsets=subsets, rng_seed=2020, verbose=False)
    return found[KEY_METRIC_KID_MEAN]


def distance(name: str, features: np.ndarray, original: np.ndarray) -> float | None:
    """The measure of that name between two sets' features; None with fewer than 2 patches."""
    return (fid if name.startswith("fid") else kid)(features, original)
