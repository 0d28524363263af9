"""Steps without values: torch's fake tensors and modes, whose names are private, do what fake_step.py needs."""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from jobs.config.presets import tiny
from jobs.training import fake_step
from jobs.training.num_categories import with_categories
from jobs.training.stage import MODULES, load_stage


def test_torch_counts_storages_of_fake_tensors():
    """Where this fails, torch has changed FakeTensorMode, TorchDispatchMode or storages, which --dry-run counts."""
    living = fake_step.Living()
    with FakeTensorMode(), living:
        kept = torch.empty(1000, dtype=torch.float32)
        view = kept.view(10, 100)  # the same storage
        with torch.no_grad():
            torch.empty(500, dtype=torch.float32)  # freed at once
        assert (living.now, living.most) == (4000, 6000)
        del kept, view
        assert living.now == 0


def test_torch_asks_our_mode_whether_values_are_finite():
    """Where this fails, torch has changed TorchFunctionMode: a step on fake tensors asks for values, which it lacks."""
    with FakeTensorMode(), fake_step.AlwaysFinite():
        assert torch.isfinite(torch.zeros(())) is True


def test_a_module_that_is_held_twice_stays_one():
    """And what does not train, or is not saved, stays so."""
    with torch.device("meta"):
        shared = nn.Linear(2, 3)
        shared.register_buffer("table", torch.zeros(4), persistent=False)
        whole = nn.Sequential(shared, shared)
    fake_step.onto_cpu(whole)
    assert whole[0] is whole[1] and {p.device.type for p in whole.parameters()} == {"cpu"}
    assert whole[0].weight.shape == (3, 2) and whole[0].table.device.type == "cpu"
    assert "0.table" not in whole.state_dict()


@pytest.mark.parametrize("name", MODULES)
def test_networks_have_shapes_and_no_values(name):
    config = with_categories(tiny(), 133)
    nets = fake_step.networks(load_stage(name), config)
    assert set(nets.networks()) >= set(load_stage(name).publishes)
    assert {p.device.type for network in nets.networks().values() for p in network.parameters()} == {"meta"}
