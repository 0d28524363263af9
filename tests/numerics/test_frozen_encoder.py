"""Training with a frozen encoder: resume, several workers, queued steps, and unchanged encoder weights."""

from dataclasses import replace

import pytest
import torch

from egic.networks.discriminator import Discriminator
from egic.networks.frozen_features import find
from jobs.commands import dry_run
from jobs.training import loop, train_state
from jobs.training.cuda_graphs import QueuedSteps, uncaptured
from jobs.training.stage import load_stage
from tests import encoders
from tests.local_session import LocalSession, components, run_group, small, weights

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.slow]
STAGES = ("segmentation", "gan")


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return str(encoders.write_weights(tmp_path_factory.mktemp("weights") / "w.safetensors"))


def with_encoder(stage, file, **changes):
    config = small(stage, **changes)
    return replace(config, discriminator=replace(config.discriminator, encoder=encoders.NAME, encoder_weights=file))


def parts_of(stage, config):
    """The stage's parents, the same at every call."""
    encoder = find(config.discriminator.encoder, len(config.discriminator.down), config.discriminator.encoder_weights)
    if stage == "segmentation":
        return {"encoder": encoder}
    parts = components(config, "codec", "lpips")
    torch.manual_seed(3)
    return parts | {"discriminator": Discriminator(config.discriminator, encoder).eval(), "encoder": encoder}


def train(stage, config, session):
    parts = parts_of(stage, config)
    loop.train(stage, config, parts, session, {"stage": stage})
    return parts


@pytest.mark.parametrize("stage", STAGES)
def test_resuming_is_bit_identical_and_the_encoder_is_unchanged(tmp_path, stage, file):
    config = with_encoder(stage, file)
    parts = train(stage, config, LocalSession(tmp_path / "whole"))
    if stage == "gan":
        frozen = dict(parts["discriminator"].encoder.net.named_buffers())
        assert all(torch.equal(frozen[name], value) for name, value in parts["encoder"].items())
    with pytest.raises(KeyboardInterrupt):
        train(stage, config, LocalSession(tmp_path / "halves", stop_after=1))
    train(stage, config, LocalSession(tmp_path / "halves"))
    whole, halves = (weights(tmp_path / name, stage, config) for name in ("whole", "halves"))
    assert whole.keys() == halves.keys() and not any(".encoder." in name for name in whole)
    assert all(torch.equal(whole[k], halves[k]) for k in whole)


@pytest.mark.slow
def test_two_workers_train_the_same_model_as_one(tmp_path, file):
    config = with_encoder("segmentation", file, steps=2)
    train("segmentation", config, LocalSession(tmp_path / "one"))
    run_group({"segmentation": config}, tmp_path / "two", 2, train)
    one = weights(tmp_path / "one", "segmentation", config)
    two = weights(tmp_path / "two" / "segmentation", "segmentation", config)
    assert max((one[k] - two[k]).abs().max() for k in one) <= 4 * config.segmentation.lr  # see test_training.py


@pytest.mark.parametrize("stage", STAGES)
def test_queued_steps_train_the_same_model(tmp_path, stage, file):
    config, name = with_encoder(stage, file, steps=6, **({"warmup_steps": 0} if stage == "gan" else {})), stage
    stage, found = load_stage(name), []
    for queued in (False, True):
        torch.manual_seed(0)
        session = LocalSession(tmp_path / str(queued))
        nets = stage.build(config, parts_of(name, config))
        state = train_state.prepare_training(stage, nets, session, stage.settings(config))
        step = stage.step
        if queued:
            queue = QueuedSteps(stage, state, config, session.device, uncaptured)
        for number, raw in enumerate(session.stream(config, 0, stage.settings(config))):
            batch = loop.to_batch(raw, session.device)
            queue(batch, number) if queued else step(nets, state.optimizers, batch, config, number)
        found.append(train_state.trained_weights(stage, nets))
    plain, queued = found
    assert all(torch.allclose(plain[k], queued[k], rtol=1e-4, atol=1e-6) for k in plain)


@pytest.mark.parametrize("stage", STAGES)
def test_a_dry_run_includes_the_encoder_and_needs_no_weights(stage):
    plain = small(stage)
    config = replace(plain, discriminator=replace(plain.discriminator, encoder=encoders.NAME))
    cost, without = dry_run.cost_of(stage, config), dry_run.cost_of(stage, plain)
    model = Discriminator(config.discriminator)
    frozen = sum(b.numel() for b in model.encoder.net.buffers())
    trained = sum(p.numel() for p in model.parameters())
    assert cost.parameters - cost.trained - (without.parameters - without.trained) >= frozen
    latent = sum(p.numel() for p in model.latent.parameters())
    if stage == "segmentation":
        assert cost.trained == trained - latent and cost.artifact == 4 * trained
    assert cost.memory > 0
