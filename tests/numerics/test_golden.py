"""Our modules compute the arrays of the TensorFlow reference (EGIC_GOLDEN) with the same weights."""

import importlib.util
import json

import numpy as np
import pytest
import torch

from egic.networks import entropy
from egic.networks.codec import Codec, CodecConfig
from egic.networks.discriminator import Discriminator, DiscriminatorConfig
from egic.networks.orp import ResidualHead
from egic.networks.swin import LayerNorm, SwinBlock, window_kinds
from egic.networks.transforms import PatchMerging, PatchSplitting, PatchUnpack, depth_to_space
from egic.reference.weights import _dense, _signal_conv, _transform_path, load_reference_weights
from egic.training import losses


@pytest.fixture(scope="module")
def reference(golden):
    spec = importlib.util.spec_from_file_location("reference_weights", golden / "reference_weights.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def arrays(golden, reference):
    """All variables of the manifest, grouped by model."""
    groups = {"codec": {}, "orp": {}, "disc": {}}
    for v in json.loads((golden / "manifest.json").read_text())["variables"]:
        root = v["path"].split("/")[0]
        group = root if root in groups else "codec"
        groups[group][v["path"]] = reference.fill(v["path"], v["shape"], *reference.fill_params(v["path"]))
    return groups


@pytest.fixture(scope="module")
def codec(arrays):
    codec = Codec(CodecConfig()).eval()
    load_reference_weights(codec, arrays["codec"])
    return codec


def load(golden, name):
    with np.load(golden / f"{name}.npz") as f:
        return {k: torch.from_numpy(np.asarray(f[k])) for k in f.files}


def fill(reference, path, shape, mean=0.0, std=0.3):
    return torch.from_numpy(reference.fill(path, shape, mean, std))


CASES = [(16, 8, 4), (8, 8, 4), (16, 8, 0), (8, 4, 2), (4, 4, 2)]


@pytest.mark.parametrize("size, window, shift", CASES)
def test_swin_block(golden, reference, size, window, shift):
    blocks = load(golden, "blocks")
    block = SwinBlock(64, window, shift).eval()
    with torch.no_grad():
        for name, p in block.named_parameters():
            path, layout = _transform_path(f"stages.0.blocks.0.{name}", f"swinblock_ws{window}", "")
            shape = p.shape[::-1] if layout is _dense else p.shape
            value = reference.fill(path, shape, *reference.fill_params(path))
            p.copy_(torch.from_numpy(np.ascontiguousarray(layout(value))))
        key = f"swinblock_H{size}W{size}_ws{window}_shift{shift}"
        out = block(blocks[f"{key}_in"])
    torch.testing.assert_close(out, blocks[f"{key}_out"], rtol=0, atol=1e-5)
    if shift:
        mask = block.masks[window_kinds(1, size // window, size // window, torch.device("cpu"))]
        assert torch.equal(mask[:, 0].short(), blocks[f"{key}_attn_mask"])
    assert torch.equal(block.attn.relative_position_index.int(), blocks[f"relative_position_index_{window}"])


@torch.no_grad()
def test_resampling(golden, reference):
    blocks = load(golden, "blocks")
    merge, split, unpack = PatchMerging(8, 12), PatchSplitting(8, 5), PatchUnpack(8, 3)
    for name, module in (("patch_merging", merge), ("patch_splitting", split), ("patch_unpack", unpack)):
        reduction = module.reduction
        kernel = fill(reference, f"{name}/x/reduction/kernel", (reduction.in_features, reduction.out_features))
        reduction.weight.copy_(kernel.T)
        if reduction.bias is not None:
            reduction.bias.copy_(fill(reference, f"{name}/x/reduction/bias", reduction.bias.shape))
        if hasattr(module, "norm"):
            module.norm.weight.copy_(fill(reference, f"{name}/x/norm/gamma", module.norm.weight.shape, 1.0, 0.1))
            module.norm.bias.copy_(fill(reference, f"{name}/x/norm/beta", module.norm.bias.shape, 0.0, 0.1))
        torch.testing.assert_close(module(blocks[f"{name}_in"]), blocks[f"{name}_out"], rtol=0, atol=1e-5)
    assert torch.equal(depth_to_space(blocks["depth_to_space_in"]), blocks["depth_to_space_out"])


def test_activations(golden):
    blocks = load(golden, "blocks")
    gelu = SwinBlock(32, 4, 0).mlp.act
    torch.testing.assert_close(gelu(blocks["gelu_in"]), blocks["gelu_out"], rtol=0, atol=1e-6)
    norm = LayerNorm(64)
    torch.testing.assert_close(norm(blocks["layernorm_small_in"]), blocks["layernorm_small_out"], rtol=0, atol=1e-5)


def test_slice_convolution_is_flipped(golden):
    blocks = load(golden, "blocks")
    kernel = torch.from_numpy(_signal_conv(blocks["signalconv_kernel"].numpy()).copy())
    out = torch.nn.functional.conv2d(blocks["signalconv_in"].permute(0, 3, 1, 2), kernel, padding=1)
    torch.testing.assert_close(out.permute(0, 2, 3, 1), blocks["signalconv_out"], rtol=0, atol=1e-5)


@torch.no_grad()
def test_codec(golden, codec, reference):
    g = load(golden, "codec_256")
    x = g["x"].permute(0, 3, 1, 2).float()
    assert np.array_equal(reference.make_image(int(g["seed"]), 256, 256, 2), g["x"].numpy())
    y = codec.analyse(x)
    z = codec.h_a(y)
    z_hat = torch.round(z)
    means, scales = codec.hyper(z_hat)
    nhwc = lambda t: t.permute(0, 2, 3, 1)  # noqa: E731
    torch.testing.assert_close(nhwc(y), g["y"], rtol=0, atol=1e-4)
    torch.testing.assert_close(nhwc(z), g["z"], rtol=0, atol=1e-4)
    assert torch.equal(nhwc(z_hat), g["z_hat"])
    torch.testing.assert_close(nhwc(means), g["latent_means"], rtol=0, atol=1e-4)
    torch.testing.assert_close(nhwc(scales), g["latent_scales"], rtol=0, atol=1e-4)
    torch.testing.assert_close(codec.prior.bits(z_hat).sum((1, 2, 3)), g["z_bits"], rtol=1e-4, atol=0)
    torch.testing.assert_close(codec(x).bits_z, g["z_bits"], rtol=1e-4, atol=0)


def test_prior_bits(golden, codec):
    e = load(golden, "entropy")
    for kind in ("int", "real"):
        values = e[f"z_{kind}_grid"].view(1, 1, -1, 1).expand(1, 192, -1, 1)
        bits = codec.prior.bits(values)[0, :, :, 0].T
        torch.testing.assert_close(bits, e[f"z_{kind}_bits"], rtol=1e-4, atol=1e-5)


def test_gaussian_bits(golden):
    e = load(golden, "entropy")
    torch.testing.assert_close(entropy.sigma_of(torch.arange(64.0)), e["scale_table"], rtol=1e-5, atol=0)
    bits = entropy.gaussian_bits(torch.round(e["y_d"]), entropy.sigma_of(e["y_idx"]))  # evaluation rounds first
    torch.testing.assert_close(bits, e["y_eval_bits"], rtol=1e-4, atol=1e-6)
    quantised = entropy.quantize(e["y_d"] + e["y_loc"], e["y_loc"])
    torch.testing.assert_close(quantised, e["y_quantize_of_d_plus_loc"], rtol=0, atol=1e-4)


def test_seg_loss(golden):
    g = load(golden, "losses")
    logits, label, weight = g["seg_logits"].permute(0, 3, 1, 2), g["seg_gt"].long(), g["seg_weight"]
    torch.testing.assert_close(losses.seg(logits, label, weight), g["seg_loss"], rtol=1e-5, atol=0)
    for i in range(3):
        one = losses.seg(logits[i : i + 1], label[i : i + 1], weight[i : i + 1])
        torch.testing.assert_close(one, g["seg_loss_per_image"][i], rtol=1e-5, atol=1e-7)


MODELS = {
    "codec": lambda: Codec(CodecConfig()),
    "orp": lambda: ResidualHead(CodecConfig()),
    "disc": lambda: Discriminator(DiscriminatorConfig()),
}


@pytest.mark.parametrize("name", MODELS)
def test_loader_needs_all_variables_and_refuses_others(arrays, name):
    model, given = MODELS[name](), arrays[name]
    load_reference_weights(model, given)
    first = next(iter(given))
    for broken, word in (
        ({k: v for k, v in given.items() if k != first}, f"missing {first}"),
        (given | {"nobody/knows": np.zeros(3)}, "surplus nobody/knows"),
        (given | {first: np.zeros((1, 2))}, f"misshaped {first}"),
    ):
        with pytest.raises(ValueError, match=word):
            load_reference_weights(model, broken)
