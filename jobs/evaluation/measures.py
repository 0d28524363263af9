"""The measures that an evaluation makes, and the pretrained networks that they run on."""

import importlib.util
import logging
from dataclasses import dataclass

from torch import Tensor

from egic.errors import UserError
from egic.metrics import fid_kid, pretrained, quality
from jobs.config.schema import EvaluateConfig

log = logging.getLogger(__name__)

PACKAGES = {"lpips_alex": "lpips", "lpips_vgg": "lpips", "dists": "torchmetrics"}
PACKAGES |= dict.fromkeys(fid_kid.NAMES, "torch_fidelity")


@dataclass(frozen=True, kw_only=True)
class Measures:
    """What is measured: names, the files their networks come from (by measure), and weights by network."""

    names: tuple[str, ...]
    sources: dict[str, str]
    states: dict[str, dict[str, Tensor]]


def find_measures(config: EvaluateConfig) -> Measures:
    """The measures asked for with their weights, or all that can be had; a warning names those that can't.

    Raises UserError when one that was asked for cannot be had.
    """
    names, sources, states = ["psnr_db"], {}, {}
    lacking: dict[str | None, str] = {}
    for name in [n for n in (*quality.NAMES, *fid_kid.NAMES) if n != "psnr_db" and n in (config.metrics or (n,))]:
        network = fid_kid.NETWORK if name in fid_kid.NAMES else quality.NETWORK_OF.get(name)
        try:
            if name in PACKAGES and importlib.util.find_spec(PACKAGES[name]) is None:
                raise UserError(f"the package {PACKAGES[name]} is not installed: pip install 'egic[train]'")
            if network in lacking:
                raise UserError(lacking[network])
            if network and network not in states:
                sources[network], states[network] = pretrained.find(network, config.weights)
        except UserError as error:
            if config.metrics:
                raise UserError(f"{name}: {error}; or leave it out of --metrics") from error
            if network not in lacking:
                lacking[network] = str(error)
            log.warning("%s is left out: %s", name, error)
        else:
            names.append(name)
    used = {n: sources[k] for n in names if (k := fid_kid.NETWORK if n in fid_kid.NAMES else quality.NETWORK_OF.get(n))}
    return Measures(names=tuple(names), sources=used, states=states)


def lacking_networks(config: EvaluateConfig) -> list[str]:
    """Networks of the measures asked for whose weights are not on this machine, so that they would be downloaded."""
    names = config.metrics or (*quality.NAMES, *fid_kid.NAMES)
    wanted = {fid_kid.NETWORK if n in fid_kid.NAMES else quality.NETWORK_OF.get(n) for n in names}
    return sorted(n for n in wanted if n and pretrained.on_disk(n, config.weights) is None)
