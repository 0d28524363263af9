"""Codecs for tests: a tiny one with random weights, and one of the paper's size with the reference arrays' weights."""

import importlib.util
import json
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import nn

from egic.model import Model
from egic.networks.codec import Codec, CodecConfig
from egic.networks.orp import ResidualHead
from egic.reference.weights import load_reference_weights

TINY = CodecConfig(
    dims=(32, 32, 64, 64),
    depths=(1, 1, 2, 1),
    hyper_dims=(32, 32),
    hyper_depths=(1, 1),
    num_slices=4,
    window=4,
    hyper_window=2,
)


@torch.no_grad()
def tiny_model(seed: int = 0, orp: bool = True, rates: int = 0) -> Model:
    """Random weights, scaled so that y has a standard deviation of about 2 and scale indices range over 0..30."""
    config = replace(TINY, rates=rates)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        codec, head = Codec(config), ResidualHead(config)
        codec.g_a.stages[2].resample.reduction.weight.mul_(4)
        codec.h_a.patch_embed.weight.mul_(3)
        for mean_net, scale_net in zip(codec.charm.mean_nets, codec.charm.scale_nets, strict=True):
            nn.init.normal_(mean_net[-1].bias, 0, 0.5)
            nn.init.normal_(scale_net[-1].bias, 7, 6)
            scale_net[-1].weight.mul_(20)
    return Model(codec, head if orp else None)


@torch.no_grad()
def frozen_model() -> Model:
    """The model of the files in tests/fixtures/one_rate. RandomState: NumPy never changes its stream."""
    config = replace(TINY, dims=(32,) * 4, depths=(1,) * 4, num_slices=2)
    codec, head = Codec(config), ResidualHead(config)
    for module, seed in ((codec, 0), (head, 1)):
        rng = np.random.RandomState(seed)
        for name, p in sorted(module.named_parameters()):
            values = rng.standard_normal(p.shape)
            if name.startswith("prior."):
                values *= 0.3
            elif p.ndim > 1:
                values /= np.sqrt(p[0].numel())
            else:
                values = 0.1 * values + ("norm" in name and name.endswith("weight"))
            p.copy_(torch.from_numpy(values))
    for net in codec.charm.scale_nets:
        net[-1].bias.add_(20)
    return Model(codec, head)


@lru_cache(maxsize=1)
def reference_module(golden: Path):
    """The functions `fill`, `fill_params` and `make_image` from the folder of the reference arrays."""
    spec = importlib.util.spec_from_file_location("reference_weights", golden / "reference_weights.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def full_model(golden: Path) -> Model:
    """32.6 M parameters and ORP, filled as for the reference arrays: 1.5 bit per pixel on photographs."""
    reference = reference_module(golden)
    groups = {"codec": {}, "orp": {}, "disc": {}}
    for v in json.loads((golden / "manifest.json").read_text())["variables"]:
        root = v["path"].split("/")[0]
        if root != "disc":
            group = groups[root if root in groups else "codec"]
            group[v["path"]] = reference.fill(v["path"], v["shape"], *reference.fill_params(v["path"]))
    codec, orp = Codec(CodecConfig()), ResidualHead(CodecConfig())
    load_reference_weights(codec, groups["codec"])
    load_reference_weights(orp, groups["orp"])
    return Model(codec, orp)
