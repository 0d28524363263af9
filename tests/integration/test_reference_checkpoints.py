"""Import of checkpoints and SavedModels that TensorFlow writes for the reference's object graph."""

import importlib.util
import json

import numpy as np
import pytest
import torch

import egic
from egic import artifact
from egic.cli import main
from egic.networks.codec import CodecConfig
from egic.networks.discriminator import Discriminator, DiscriminatorConfig
from tests.codec_models import full_model, tiny_model
from tests.reference_objects import variables_of

pytestmark = [
    pytest.mark.reference,
    pytest.mark.skipif(importlib.util.find_spec("tensorflow") is None, reason="TensorFlow is not installed"),
]
D_CONFIG = DiscriminatorConfig(down=(8, 12), up=(12, 8), latent_channels=64, num_categories=5)


@pytest.fixture(scope="module")
def parts():
    torch.manual_seed(0)
    model = tiny_model()
    return {"codec": model.codec, "orp": model.orp, "discriminator": Discriminator(D_CONFIG)}


def objects(variables):
    """The tree of tf.Modules whose attributes are named as the variables' paths say."""
    import tensorflow as tf

    root = tf.Module()
    for key, array in variables.items():
        *where, leaf = key.split("/")
        node = root
        for name in where:
            child = getattr(node, name, None) or tf.Module()
            setattr(node, name, child)
            node = child
        setattr(node, leaf, tf.Variable(array))
    return root


def graph(*modules, **more):
    """The objects of a tf.train.Checkpoint of the reference's model."""
    import tensorflow as tf

    variables = {k: v for k, v in variables_of(*modules, prefix="").items() if k != "save_counter"}
    return tf.train.Checkpoint(model=objects(variables), **more)


def run(capsys, *arguments):
    status = main.main([str(a) for a in arguments])
    return status, capsys.readouterr()


def assert_same(folder, parts):
    found = artifact.load(folder)
    assert found.keys() == parts.keys()
    for name, module in parts.items():
        theirs = found[name].state_dict()
        assert all(torch.equal(theirs[k], v) for k, v in module.state_dict().items()), name


def test_a_training_checkpoint_is_imported(tmp_path, parts, capsys):
    """As Keras' BackupAndRestore writes it: chief/, counters, and optimizer slots."""
    import tensorflow as tf

    chosen = {name: parts[name] for name in ("codec", "discriminator")}
    saved = graph(*chosen.values(), train_counter=tf.Variable(5), ckpt_saved_epoch=tf.Variable(1))
    manager = tf.train.CheckpointManager(saved, str(tmp_path / "train" / "chief"), max_to_keep=1)
    manager.save()
    prefix = manager.save()
    for source in (tmp_path / "train", prefix):
        status, out = run(capsys, "import-reference", source, "-o", tmp_path / "new", "--force")
        assert status == 0, out.err
        for key in ("train_counter", "ckpt_saved_epoch", "save_counter", "model/loss/total"):
            assert f"not used: {key}\n" in out.out
        assert "_naked_clone_layer/bias (" in out.out and out.out.count("not used") == 11
        assert_same(tmp_path / "new", chosen)
    assert json.loads((tmp_path / "new" / "provenance.json").read_text())["stage"] == "gan"


def test_a_saved_model_is_imported_by_its_object_graph(tmp_path, parts, capsys):
    """Keys of Keras' SavedModels are positions in the list `variables`; only the object graph has the names."""
    import tensorflow as tf

    chosen = {name: parts[name] for name in ("codec", "orp")}
    model = tf.train.Checkpoint()  # an object whose attribute may be called `variables`
    tree = objects({k: v for k, v in variables_of(*chosen.values(), prefix="").items() if k != "save_counter"})
    for name in ("analysis_transform", "synthesis_transform", "hyper_analysis_transform", "hyperprior", "loss"):
        setattr(model, name, getattr(tree, name))
    for name in ("hyper_synthesis_mean_scale_transform", "cc_mean_transforms", "cc_scale_transforms", "optimizer"):
        setattr(model, name, getattr(tree, name))
    model.variables = list(tree.variables)
    tf.saved_model.save(model, str(tmp_path / "saved"))
    keys = [k for k, _ in tf.train.list_variables(str(tmp_path / "saved" / "variables" / "variables"))]
    assert sum(k.startswith("variables/") for k in keys) == len(keys) - 3
    status, out = run(capsys, "import-reference", tmp_path / "saved", "-o", tmp_path / "new")
    assert status == 0, out.err
    assert_same(tmp_path / "new", chosen)
    picture = np.random.default_rng(0).integers(0, 256, (70, 90, 3), np.uint8)
    imported, original = egic.load(tmp_path / "new"), tiny_model()
    data = imported.compress(picture)
    assert data == original.compress(picture)
    assert np.array_equal(imported.decompress(data, 0.5), original.decompress(data, 0.5))


def test_a_discriminator_saved_alone_is_imported(tmp_path, parts, capsys):
    import tensorflow as tf

    variables = {k.removeprefix("disc/"): v for k, v in variables_of(parts["discriminator"], prefix="").items()}
    variables = {k: v for k, v in variables.items() if k.startswith("layer")}
    prefix = tf.train.Checkpoint(model=objects(variables)).save(str(tmp_path / "ckpt"))
    status, out = run(capsys, "import-reference", prefix + ".index", "-o", tmp_path / "new")
    assert status == 0 and "segmentation: discriminator (" in out.out, out.err
    assert_same(tmp_path / "new", {"discriminator": parts["discriminator"]})


def test_damaged_and_other_checkpoints_are_one_line(tmp_path, capsys):
    import tensorflow as tf

    prefix = tf.train.Checkpoint(dense=tf.Variable([1.0])).save(str(tmp_path / "ckpt"))
    status, out = run(capsys, "import-reference", prefix, "-o", tmp_path / "new")
    assert status == 2 and "no variables of the reference, only dense" in out.err
    (tmp_path / "ckpt-1.index").write_bytes(b"no table")
    status, out = run(capsys, "import-reference", prefix, "-o", tmp_path / "new")
    assert status == 2 and "cannot be read" in out.err and out.err.count("\n") == 1
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
@torch.no_grad()
def test_an_imported_model_computes_the_golden_arrays(tmp_path, golden, capsys):
    """The paper's size with the weights of the golden arrays, written by TensorFlow and imported."""
    model = full_model(golden)
    prefix = graph(model.codec, model.orp).save(str(tmp_path / "ckpt"))
    status, out = run(capsys, "import-reference", prefix, "-o", tmp_path / "new")
    assert status == 0 and "codec (32,556,240 parameters), orp (399,892 parameters)" in out.out, out.err
    imported = egic.load(tmp_path / "new")
    assert imported.codec.config == CodecConfig()
    with np.load(golden / "codec_256.npz") as g:
        x = torch.from_numpy(g["x"]).permute(0, 3, 1, 2).float()
        y = imported.codec.analyse(x)
        z_hat = torch.round(imported.codec.h_a(y))
        means, scales = imported.codec.hyper(z_hat)
        for ours, name in ((y, "y"), (z_hat, "z_hat"), (means, "latent_means"), (scales, "latent_scales")):
            torch.testing.assert_close(ours.permute(0, 2, 3, 1), torch.from_numpy(g[name]), rtol=0, atol=1e-4)
        bits = imported.codec.prior.bits(z_hat).sum((1, 2, 3))
        torch.testing.assert_close(bits, torch.from_numpy(g["z_bits"]), rtol=1e-4, atol=0)
    assert_same(tmp_path / "new", {"codec": model.codec, "orp": model.orp})
