"""ChARM: which latents each slice's networks depend on, and the widths of the networks."""

import torch

from egic.networks.charm import ChARM

HIDDEN0 = [64, 64, 85, 106, 128, 149, 170, 192, 213, 234]
HIDDEN1 = [32, 32, 42, 53, 64, 74, 85, 96, 106, 117]


def test_widths_equal_the_papers():
    with torch.device("meta"):
        charm = ChARM(320, 10)
    for nets in (charm.mean_nets, charm.scale_nets):
        widths = [[net[i].in_channels for i in (0, 2, 4)] + [net[4].out_channels] for net in nets]
        assert widths == [[32 * (k + 1), a, b, 32] for k, (a, b) in enumerate(zip(HIDDEN0, HIDDEN1, strict=True))]
        assert all(net[i].kernel_size == (3, 3) and net[i].padding == (1, 1) for net in nets for i in (0, 2, 4))


def run(charm: ChARM, means: torch.Tensor, scales: torch.Tensor, offset: torch.Tensor):
    """mu and scale index of every slice, where the decoded value of a slice is mu + offset."""
    seen = []

    def code(k, mu, index):
        seen.append((mu, index()))
        return mu + offset[:, k * charm.width : (k + 1) * charm.width]

    y_hat = charm(means, scales, code)
    return seen, y_hat


@torch.no_grad()
def changed(charm: ChARM, which: str, k: int) -> tuple[list[bool], list[bool]]:
    """Slices whose mean, and whose scale index, change with slice k of `which`."""
    g = torch.Generator().manual_seed(0)
    inputs = {name: torch.randn(1, 12, 4, 4, generator=g) for name in ("means", "scales", "offset")}
    before, _ = run(charm, **inputs)
    inputs[which] = inputs[which].clone()
    inputs[which][:, k * charm.width : (k + 1) * charm.width] += 1
    after, _ = run(charm, **inputs)
    pairs = list(zip(before, after, strict=True))
    return [not torch.equal(a[0], b[0]) for a, b in pairs], [not torch.equal(a[1], b[1]) for a, b in pairs]


def test_a_slice_depends_on_its_hyper_features_and_all_earlier_decoded_slices():
    torch.manual_seed(0)
    charm, n = ChARM(12, 4), 4
    for k in range(n):
        later = [j > k for j in range(n)]
        own_and_later = [j >= k for j in range(n)]
        only_own = [j == k for j in range(n)]
        never = [False] * n
        assert changed(charm, "offset", k) == (later, later)  # a decoded slice changes all later ones
        assert changed(charm, "scales", k) == (never, only_own)  # mu does not depend on hyper scales
        means, index = changed(charm, "means", k)
        assert means == own_and_later and index == later  # hyper means change others only through decoded values


def test_slices_keep_their_order():
    torch.manual_seed(0)
    charm, order = ChARM(12, 4), []
    decoded = torch.randn(2, 12, 4, 4)

    def code(k, mu, index):
        order.append(k)
        assert mu.shape == index().shape == (2, 3, 4, 4)
        return decoded[:, 3 * k : 3 * k + 3]

    assert torch.equal(charm(torch.randn(2, 12, 4, 4), torch.randn(2, 12, 4, 4), code), decoded)
    assert order == [0, 1, 2, 3]
