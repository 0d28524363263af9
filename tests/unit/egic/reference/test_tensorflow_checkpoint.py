"""Import of the reference's variables: all are used or listed as unused, and missing ones are named."""

import numpy as np
import pytest
import torch

from egic import artifact
from egic.cli import main
from egic.networks.codec import Codec, CodecConfig
from egic.networks.discriminator import Discriminator, DiscriminatorConfig
from egic.networks.orp import ResidualHead
from egic.reference import tensorflow_checkpoint
from tests.codec_models import TINY
from tests.reference_objects import variables_of

SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"
D_CONFIG = DiscriminatorConfig(down=(8, 12, 16), up=(16, 12, 8), latent_channels=64, num_categories=5)


@pytest.fixture(scope="module")
def parts():
    torch.manual_seed(0)
    parts = {"codec": Codec(TINY), "orp": ResidualHead(TINY), "discriminator": Discriminator(D_CONFIG)}
    for module in parts.values():
        for parameter in module.parameters():
            torch.nn.init.normal_(parameter)  # all values differ from each other and from zero
    return parts


@pytest.fixture
def variables(parts):
    return variables_of(*parts.values())


def assert_same(found, parts):
    assert found.keys() == parts.keys()
    for name, module in parts.items():
        assert found[name].config == module.config if name != "orp" else True
        theirs = found[name].state_dict()
        assert all(torch.equal(theirs[k], v) for k, v in module.state_dict().items())


@pytest.mark.parametrize(
    "names, stage",
    [
        (("codec",), "gan"),
        (("codec", "orp"), "orp"),
        (("codec", "discriminator"), "gan"),
        (("discriminator",), "segmentation"),
    ],
)
@pytest.mark.parametrize("prefix, suffix", [("model/", SUFFIX), ("", "")], ids=["checkpoint", "SavedModel"])
def test_every_variable_is_imported(parts, names, stage, prefix, suffix):
    chosen = {name: parts[name] for name in names}
    given = {k + suffix: v for k, v in variables_of(*chosen.values(), prefix=prefix).items()}
    found, unused = tensorflow_checkpoint.components(given)
    assert_same(found, chosen)
    assert tensorflow_checkpoint.stage_of(found, None) == stage
    beside = [k for k in given if k.split("/")[-1 if not suffix else -3] in ("bias", "initialized", "total", "1")]
    listed = {k for k in beside if "_naked_clone" in k or "initialized" in k or "loss/" in k or "optimizer/" in k}
    assert set(unused) == listed | {"save_counter" + suffix}


def test_a_discriminator_that_is_saved_alone_is_imported(parts):
    given = variables_of(parts["discriminator"])
    alone = {k.replace("model/disc/", "model/"): v for k, v in given.items()}
    assert alone.keys() != given.keys()
    assert_same(tensorflow_checkpoint.components(alone)[0], {"discriminator": parts["discriminator"]})


def test_the_papers_configs_are_inferred():
    with torch.device("meta"):
        modules = Codec(CodecConfig()), Discriminator(DiscriminatorConfig())
    shapes = {path: tuple(p.shape) for m in modules for p, path, _ in tensorflow_checkpoint.reference_paths(m)}
    undo = {4: lambda s: (s[2], s[3], s[1], s[0]), 2: lambda s: s[::-1]}
    table = "relative_position_bias_table"
    arrays = {p: np.empty(s if table in p else undo.get(len(s), tuple)(s)) for p, s in shapes.items()}
    arrays |= {p: np.empty(s[0]) for p, s in shapes.items() if p.endswith("/g")}
    assert tensorflow_checkpoint.codec_config(arrays) == CodecConfig()
    assert tensorflow_checkpoint.discriminator_config(arrays) == DiscriminatorConfig()


def test_kernels_stored_as_real_dfts_are_converted(parts):
    """tfc.RDFTParameter: kernel (h, w, in, out) -> transposed to (in, out, h, w), rfft2, divided by sqrt(h w)."""
    given = variables_of(parts["codec"])
    for key in [k for k in given if k.endswith("_kernel_parameter")]:
        spectrum = np.fft.rfft2(given.pop(key).transpose(2, 3, 0, 1)) / 3
        given[key + "/real" + SUFFIX] = spectrum.real.astype(np.float32)
        given[key + "/imag" + SUFFIX] = spectrum.imag.astype(np.float32)
    found, unused = tensorflow_checkpoint.components(given)
    assert not [k for k in unused if "_kernel_parameter" in k]
    for name, parameter in parts["codec"].named_parameters():
        theirs = found["codec"].get_parameter(name)
        torch.testing.assert_close(theirs, parameter, rtol=0, atol=2e-6 if name.startswith("charm") else 0)


PLACES = {
    "model/analysis_transform/layer_with_weights-2/blocks/0/norm1/beta": "analysis_transform/stage1/block0/norm1/beta",
    "model/analysis_transform/layer_with_weights-0/kernel": "analysis_transform/patch_embed/kernel",
    "model/hyper_synthesis_mean_scale_transform/layer_with_weights-1/upsample/reduction/bias": (
        "hyper_synthesis_transform/stage1/upsample/reduction/bias"
    ),
    "model/cc_scale_transforms/3/transform/layer_with_weights-2/_bias_parameter": "cc_scale_transforms/3/layer_2/bias",
    "model/hyperprior/_base/_matrices/1": "hyperprior/matrix_1",
    "model/synthesis_transform/cond_model/layer_with_weights-0/blocks/0/mlp/layer_with_weights-1/kernel": (
        "orp/stage0/block0/mlp/fc2/kernel"
    ),
    "model/disc/layer_with_weights-5/layer_with_weights-0/layer/bias": "disc/latent/bias",
    "model/disc/layer_with_weights-6/conv2/layer_with_weights-0/g": "disc/up2/conv2/g",
    "model/disc/layer_with_weights-7/layer_with_weights-0/kernel": "disc/out/kernel",
}


@pytest.mark.parametrize("key, path", PLACES.items())
def test_missing_misshaped_and_non_finite_variables_are_named(variables, key, path):
    array = variables.pop(key)
    with pytest.raises(ValueError, match=rf"lacks {path}$"):
        tensorflow_checkpoint.components(variables)
    with pytest.raises(ValueError, match=rf"misshaped {path}"):
        tensorflow_checkpoint.components(variables | {key: np.zeros((*array.shape, 2), np.float32)})
    with pytest.raises(ValueError, match=rf"not finite in {path}"):
        tensorflow_checkpoint.components(variables | {key: np.full_like(array, np.nan)})
    with pytest.raises(ValueError, match=f"{path} is stored twice"):
        tensorflow_checkpoint.components(variables | {key: array, key.removeprefix("model/"): array})


def test_a_block_without_any_variable_is_named(variables):
    """Depths are inferred, but a transform without its last block must not become a shallower one."""
    start = "model/analysis_transform/layer_with_weights-3/blocks/1/"
    rest = {k: v for k, v in variables.items() if not k.startswith(start)}
    with pytest.raises(ValueError, match=r"lacks analysis_transform/stage2/block1/norm1/gamma.* and \d+ more"):
        tensorflow_checkpoint.components(rest)


def test_other_checkpoints_are_refused(parts):
    with pytest.raises(ValueError, match="no variables of the reference, only model/dense/kernel"):
        tensorflow_checkpoint.components({"model/dense/kernel": np.zeros(3)})
    with pytest.raises(ValueError, match="ORP head without a codec"):
        tensorflow_checkpoint.components(variables_of(parts["orp"]))


def test_optimizer_slots_of_older_versions_are_unused(parts):
    given = variables_of(parts["codec"])
    key = next(iter(given))
    slot = f"{key}/.OPTIMIZER_SLOT/optimizer/m"
    assert slot in tensorflow_checkpoint.components(given | {slot: np.zeros(3)})[1]


def test_the_stage_follows_from_the_components(parts):
    codec, d = {"codec": parts["codec"]}, {"discriminator": parts["discriminator"]}
    assert tensorflow_checkpoint.stage_of(codec, "mse-codec") == "mse-codec"
    for found, stage in ((codec | d, "mse-codec"), (d, "gan"), (codec | {"orp": parts["orp"]}, "gan")):
        with pytest.raises(ValueError, match=f"is not a model of {stage}; leave --stage out"):
            tensorflow_checkpoint.stage_of(found, stage)


def test_object_paths_avoid_keras_lists():
    children = {
        0: [("variables", 1), ("layers", 2), ("g_a", 3)],
        1: [("0", 5)],
        2: [("0", 4)],
        3: [("layer-1", 4), ("layer_with_weights-0", 4), ("trainable_variables", 1)],
        4: [("kernel", 5), ("_self", 0)],
    }
    assert tensorflow_checkpoint.object_paths(children)[5] == "g_a/layer_with_weights-0/kernel"


@pytest.mark.parametrize("name", ["ckpt-7", "ckpt-7.index", "ckpt-7.data-00000-of-00001", "", "chief", "saved"])
def test_every_name_of_a_checkpoint_is_resolved(tmp_path, name):
    folder = tmp_path / "chief"
    (tmp_path / "saved" / "variables").mkdir(parents=True)
    folder.mkdir()
    for prefix in (folder / "ckpt-7", folder / "ckpt-6", tmp_path / "saved" / "variables" / "variables"):
        for suffix in (".index", ".data-00000-of-00001"):
            prefix.with_name(prefix.name + suffix).touch()
    (folder / "checkpoint").write_text(
        'model_checkpoint_path: "/elsewhere/ckpt-7"\nall_model_checkpoint_paths: "/elsewhere/ckpt-6"\n'
    )
    found = tensorflow_checkpoint.find_prefix((folder if name.startswith("ckpt") else tmp_path) / name)
    assert found == (tmp_path / "saved/variables/variables" if name == "saved" else folder / "ckpt-7")


def run(capsys, *arguments):
    status = main.main([str(a) for a in arguments])
    return status, capsys.readouterr()


def test_the_command_writes_an_artifact_and_lists_unused_variables(tmp_path, parts, variables, monkeypatch, capsys):
    (tmp_path / "ckpt-1.index").write_bytes(b"index")
    monkeypatch.setattr(tensorflow_checkpoint, "read", lambda prefix: variables)
    command = ("import-reference", tmp_path / "ckpt-1", "-o", tmp_path / "new")
    codec = {k: v for k, v in variables.items() if "cond_model" not in k}
    monkeypatch.setattr(tensorflow_checkpoint, "read", lambda prefix: codec)
    status, out = run(capsys, *command)
    assert status == 0, out.err
    assert "not used: save_counter\n" in out.out and "not used: model/optimizer/_variables/* (1)\n" in out.out
    assert "gan: codec (" in out.out and str(tmp_path / "new") in out.out
    assert_same(artifact.load(tmp_path / "new"), {k: parts[k] for k in ("codec", "discriminator")})
    status, out = run(capsys, *command)
    assert status == 2 and "exists; --force overwrites it" in out.err
    assert run(capsys, *command, "--force")[0] == 0
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "photo.png").touch()
    status, out = run(capsys, *command[:-1], tmp_path / "mine", "--force")
    assert status == 2 and "is not an EGIC model" in out.err and (tmp_path / "mine" / "photo.png").exists()


def test_without_tensorflow_one_line_names_the_extra(tmp_path, monkeypatch, capsys):
    (tmp_path / "ckpt-1.index").touch()
    monkeypatch.setitem(__import__("sys").modules, "tensorflow", None)
    status, out = run(capsys, "import-reference", tmp_path / "ckpt-1", "-o", tmp_path / "new")
    assert status == 2 and "pip install 'egic[import-reference]'" in out.err and out.err.count("\n") == 1
    assert not (tmp_path / "new").exists()
    status, out = run(capsys, "import-reference", tmp_path / "nothing", "-o", tmp_path / "new")
    assert status == 2 and "is not a TensorFlow checkpoint" in out.err and out.err.count("\n") == 1
