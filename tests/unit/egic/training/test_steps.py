"""Training steps: randomness per sample, whatever the batch, and the two halves of a GAN batch."""

import pytest
import torch

from egic.metrics.perceptual import LPIPS
from egic.networks.codec import Codec
from egic.networks.discriminator import Discriminator, DiscriminatorConfig
from egic.training import steps
from egic.training.steps import Batch, GanLoss, GanNets
from tests.codec_models import TINY


def batch(positions: list[int], size: int = 8) -> Batch:
    num = len(positions)
    g = torch.Generator().manual_seed(1)
    x = torch.rand(num, 3, size, size, generator=g) * 255
    label = torch.randint(0, 6, (num, size, size), generator=g)
    return Batch(x, label, torch.ones(num, size, size), positions)


def test_a_part_of_a_batch_keeps_each_samples_data_together():
    whole = batch([4, 5, 6, 7])
    part = whole.part(slice(1, 3))
    assert part.position == [5, 6]
    for name in ("x", "label", "weight"):
        assert torch.equal(getattr(part, name), getattr(whole, name)[1:3])


def draws(positions: list[int], seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    b = batch(positions)
    return steps.uniform_noise(b, (3, 2, 2), seed, 0), steps.coins(b, 9, seed)


def test_random_numbers_do_not_depend_on_how_a_batch_is_split():
    noise, coins = draws([10, 11, 12, 13])
    for other in ([10, 12], [11, 13], [13]):
        some_noise, some_coins = draws(other)
        where = [p - 10 for p in other]
        assert torch.equal(noise[where], some_noise) and torch.equal(coins[where], some_coins)


def test_random_numbers_do_not_use_or_change_the_global_generator():
    torch.manual_seed(1)
    first, state = draws([3, 4]), torch.get_rng_state()
    torch.manual_seed(2)
    second = draws([3, 4])
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)


def test_random_numbers_differ_for_every_seed_draw_and_position():
    first = {}
    for seed in range(4):
        for draw in range(3):
            for position, value in enumerate(steps.uniform_noise(batch(list(range(40))), (2,), seed, draw)):
                first[seed, draw, position] = tuple(value.tolist())
    assert len(set(first.values())) == len(first)
    generator = next(iter(steps.per_sample(batch([2**40]), 2**31, 2)))  # seeds stay in torch's range
    assert 0 <= generator.initial_seed() <= steps.MAX_SEED


def test_noise_is_uniform_and_coins_are_fair():
    noise, coins = draws(list(range(800)))
    assert noise.min() >= -0.5 and noise.max() < 0.5 and noise.dtype == torch.float32
    assert abs(noise.mean()) < 0.015 and abs(noise.var() - 1 / 12) < 0.005  # 5 standard errors
    assert coins.dtype == torch.bool and (coins.float().mean(0) - 0.5).abs().max() < 0.09


def gan(first_half: int = 0, second_half: int = 0) -> tuple[dict, dict]:
    """Losses and weights after one adversarial step; the arguments select other pictures for a half of the batch."""
    torch.manual_seed(0)
    codec = Codec(TINY).eval().requires_grad_(False)
    d = Discriminator(DiscriminatorConfig(down=(8, 8), up=(8, 8), latent_channels=64, num_categories=5)).eval()
    codec.g_s.requires_grad_(True)
    nets = GanNets(codec=codec, discriminator=d, lpips=LPIPS(None), trained={"g_s": codec.g_s, "discriminator": d})
    opt = {name: torch.optim.SGD(m.parameters(), 1e-3) for name, m in nets.trained.items()}
    both = batch([6, 7], 128)
    both.x[0] = (both.x[0] + first_half) % 256
    both.x[1] = (both.x[1] + second_half) % 256
    logs = steps.gan_step(nets, opt, both, loss=GanLoss(), clip_norm=0.0, seed=0)
    return logs, {k: v.clone() for k, v in d.state_dict().items()}


def test_one_half_of_a_gan_batch_trains_d_the_other_g_s():
    logs, weights = gan()
    other_g, weights_g = gan(second_half=100)
    assert all(torch.equal(weights[k], weights_g[k]) for k in weights)  # D does not depend on g_s's half
    assert all(logs[k] == other_g[k] for k in logs if k.startswith("d_")) and logs["mse255"] != other_g["mse255"]
    other_d, weights_d = gan(first_half=100)
    assert any(not torch.equal(weights[k], weights_d[k]) for k in weights)
    assert logs["mse255"] == other_d["mse255"] and logs["lpips"] == other_d["lpips"]


def test_the_generators_loss_is_the_weighted_sum_of_the_paper():
    logs, _ = gan()
    w = {k: v.item() for k, v in logs.items()}
    expected = 0.1 * 2**-5 * 0.75 * w["mse255"] + w["lpips"] + 2 * w["bpp"] + 0.15 * w["seg"]
    assert w["loss"] == pytest.approx(expected, rel=1e-5)
    assert w["d_loss"] == pytest.approx(w["d_seg_real"] + w["d_seg_fake"] + 10 * w["d_labelmix"], rel=1e-5)
