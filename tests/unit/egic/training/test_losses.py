"""The losses compared with their definitions, pixel by pixel."""

import pytest
import torch
import torch.nn.functional as F

from egic.training import losses


def case(num: int = 2, classes: int = 6, size: int = 5):
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(num, classes, size, size, generator=g, requires_grad=True)
    label = torch.randint(0, classes - 1, (num, size, size), generator=g)
    weight = torch.where(torch.rand(num, size, size, generator=g) < 0.5, 3.0, 1.0)
    return logits, label, weight


def naive_seg(logits, label, weight) -> float:
    total = 0.0
    for one, want, w in zip(logits.detach().double(), label, weight, strict=True):
        cost, counted = 0.0, 0
        for i in range(want.shape[0]):
            for j in range(want.shape[1]):
                if want[i, j] != 0:
                    cost -= w[i, j].item() * F.log_softmax(one[:, i, j], 0)[want[i, j]].item()
                    counted += 1
        total += cost / max(counted, 1)
    return total / len(logits)


def test_seg_is_weighted_cross_entropy_per_image():
    logits, label, weight = case()
    label[1, :4] = 0  # images have equal weight, whatever their number of labelled pixels
    assert losses.seg(logits, label, weight).item() == pytest.approx(naive_seg(logits, label, weight), rel=1e-5)


def test_void_has_no_loss_and_no_gradient():
    logits, label, weight = case()
    losses.seg(logits, label, weight).backward()
    void = (label == 0)[:, None].expand_as(logits)
    assert void.any() and logits.grad[void].eq(0).all() and logits.grad[~void].ne(0).all()


def test_an_image_without_labels_has_zero_loss_and_a_finite_gradient():
    logits, label, weight = case()
    label[0] = 0
    loss = losses.seg(logits, label, weight)
    loss.backward()
    assert loss.item() == pytest.approx(losses.seg(logits[1:], label[1:], weight[1:]).item() / 2, rel=1e-6)
    assert logits.grad.isfinite().all() and logits.grad[0].eq(0).all()
    assert losses.seg(logits[:1], label[:1], weight[:1]).item() == 0


def test_a_batch_without_labels_has_zero_loss_and_gradient():
    logits, label, weight = case()
    loss = losses.seg(logits, torch.zeros_like(label), weight)
    loss.backward()
    assert loss.item() == 0 and logits.grad.eq(0).all()
    for coin in (True, False):  # one class, so one coin decides the whole image: all real or all fake
        mask = losses.labelmix_mask(torch.zeros_like(label), torch.full((2, 6), coin))
        real, fake = logits.detach(), -logits.detach()
        assert losses.labelmix(real if coin else fake, real, fake, mask).item() == 0


def test_seg_fake_is_cross_entropy_of_the_fake_class_with_weight_1():
    logits, label, _ = case()
    expected = -F.log_softmax(logits, 1)[:, 5].mean()
    torch.testing.assert_close(losses.seg_fake(logits, 5), expected)


def test_labelmix_chooses_per_class_and_per_image():
    label = torch.tensor([[[0, 1], [2, 2]], [[2, 1], [0, 1]]])
    coins = torch.tensor([[True, False, True], [False, True, False]])
    expected = torch.tensor([[[True, False], [True, True]], [[False, True], [False, True]]])
    assert torch.equal(losses.labelmix_mask(label, coins), expected)


def test_labelmix_masks_are_whole_regions_chosen_with_probability_half():
    """Every class is real in half the draws, independently in each image."""
    g = torch.Generator().manual_seed(5)
    label = torch.randint(0, 4, (2, 8, 8), generator=g)
    draws, agree = 400, 0
    real = torch.zeros(2, 4)
    for _ in range(draws):
        coins = torch.rand(2, 4, generator=g) < 0.5
        mask = losses.labelmix_mask(label, coins)
        for image in range(2):
            for c in range(4):
                values = mask[image][label[image] == c]
                assert values.all() or not values.any()
                real[image, c] += values[0]
        agree += (mask[0][label[0] == 1][0] == mask[1][label[1] == 1][0]).item()
    assert ((real / draws - 0.5).abs() < 0.125).all()  # 5 standard deviations of a fair coin
    assert abs(agree / draws - 0.5) < 0.125  # independent of the second image


def test_labelmix_loss_compares_with_the_same_mix_of_logits():
    g = torch.Generator().manual_seed(2)
    mixed, real, fake = torch.randn(3, 2, 4, 3, 3, generator=g)
    mask = torch.rand(2, 3, 3, generator=g) < 0.5
    chosen = mask[:, None].expand(2, 4, 3, 3)
    expected = ((mixed - real)[chosen] ** 2).sum() + ((mixed - fake)[~chosen] ** 2).sum()
    torch.testing.assert_close(losses.labelmix(mixed, real, fake, mask), expected / mixed.numel())


def test_mse255_is_on_the_scale_0_to_255():
    x = torch.zeros(2, 3, 4, 4)
    assert losses.mse255(x + 10, x).item() == 100
    assert losses.mse255((x + 0.1).bfloat16(), x).dtype == torch.float32
