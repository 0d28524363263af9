"""Steps on fake tensors: torch's fake tensors and modes, which are private, work as fake_step.py needs."""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from jobs.config.presets import tiny
from jobs.training import fake_step
from jobs.training.num_categories import with_categories
from jobs.training.stage import MODULES, load_stage


def test_storages_of_fake_tensors_are_counted():
    """If this fails, torch has changed FakeTensorMode, TorchDispatchMode or storages, which --dry-run uses."""
    living = fake_step.Living()
    with FakeTensorMode(), living:
        kept = torch.empty(1000, dtype=torch.float32)
        view = kept.view(10, 100)  # the same storage
        with torch.no_grad():
            torch.empty(500, dtype=torch.float32)  # freed at once
        assert (living.now, living.most) == (4000, 6000)
        del kept, view
        assert living.now == 0


def test_checks_for_finite_values_reach_our_mode():
    """If this fails, torch has changed TorchFunctionMode, and a step on fake tensors needs values, which they lack."""
    with FakeTensorMode(), fake_step.AlwaysFinite():
        assert torch.isfinite(torch.zeros(())) is True


def test_a_module_that_is_shared_stays_shared():
    """Frozen parameters and buffers that are not saved stay so, too."""
    with torch.device("meta"):
        shared = nn.Linear(2, 3)
        shared.register_buffer("table", torch.zeros(4), persistent=False)
        whole = nn.Sequential(shared, shared)
    fake_step.onto_cpu(whole)
    assert whole[0] is whole[1] and {p.device.type for p in whole.parameters()} == {"cpu"}
    assert whole[0].weight.shape == (3, 2) and whole[0].table.device.type == "cpu"
    assert "0.table" not in whole.state_dict()


@pytest.mark.parametrize("name", MODULES)
def test_networks_on_fake_tensors_have_shapes_only(name):
    config = with_categories(tiny(), 133)
    nets = fake_step.networks(load_stage(name), config)
    assert set(nets.networks()) >= set(load_stage(name).publishes)
    assert {p.device.type for network in nets.networks().values() for p in network.parameters()} == {"meta"}
