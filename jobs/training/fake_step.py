"""Training steps on tensors that have shapes and no values: they count memory and arithmetic without computing.

torch's fake tensors and dispatch modes are documented (docs.pytorch.org, "Fake tensor" and "torch_dispatch"), but their
modules have private names. They are used in this file alone; tests/unit/jobs/training/test_fake_step.py says what broke
when torch changes them. The public meta device is not sufficient: generators, autocast and fused kernels, which steps
use, do not exist on it.
"""

import weakref
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.optim import Optimizer
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from egic.metrics.perceptual import LPIPS
from egic.networks import swin
from egic.networks.codec import Codec
from egic.networks.discriminator import Discriminator
from egic.training.steps import Batch, Nets
from jobs.config.schema import Config
from jobs.training.loop import PRECISIONS
from jobs.training.stage import Components, Stage
from jobs.training.train_state import make_optimizers, parts_of


def networks(stage: Stage, config: Config) -> Nets:
    """The stage's networks on the meta device, as they would come from its parents."""
    takes = set(stage.takes) | ({"lpips"} if "lpips_weights" in stage.reads else set())
    components: Components = {}
    with torch.device("meta"):
        if "codec" in takes:
            components["codec"] = Codec(config.codec)
        if "discriminator" in takes:
            components["discriminator"] = Discriminator(config.discriminator)
        if "lpips" in takes:
            components["lpips"] = LPIPS(None, config.lpips_net)
        nets = stage.build(config, components)
    nets.precision = PRECISIONS[config.precision]
    return nets


def take_steps(
    stage: Stage, config: Config, nets: Nets, batch: int, steps: Iterable[int], counter: AbstractContextManager
) -> dict[str, Optimizer]:
    """Take these steps of the stage with `batch` pictures while `counter` (a torch mode) observes each operation.

    Returns the optimizers, with their state after the steps.

    nets: of `networks`; they are used up.
    """
    settings = stage.settings(config)
    size = config.crop_of(settings).size
    with FakeTensorMode(), counter, AlwaysFinite(), in_few_operations():
        for network in nets.networks().values():
            onto_cpu(network)
        optimizers = make_optimizers(stage, nets, settings)
        nets.trained |= {name: parts_of(nets)[name] for name in stage.trains}
        for step in steps:
            x, label = torch.zeros(batch, 3, size, size), torch.zeros(batch, size, size, dtype=torch.long)
            drawn = Batch(x, label, torch.zeros(batch, size, size), list(range(batch)))
            stage.step(nets, optimizers, drawn, config, step)
    return optimizers


class Living(TorchDispatchMode):
    """Counts the bytes of the tensors' storages that are alive: `now`, and the most at any moment, `most`."""

    def __init__(self):
        super().__init__()
        self.now, self.most, self.known = 0, 0, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tensors_in(result):
            storage = tensor.untyped_storage()
            key = storage._cdata  # the address of the storage, which the Python object is not
            if key not in self.known:
                self.known.add(key)
                self.now += storage.nbytes()
                weakref.finalize(storage, self._forget, key, storage.nbytes())
        self.most = max(self.most, self.now)
        return result

    def _forget(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


def tensors_in(result: object) -> Iterator[Tensor]:
    """The tensors that an operation returned, alone or in lists and tuples."""
    if isinstance(result, Tensor):
        yield result
    elif isinstance(result, list | tuple):
        for each in result:
            yield from tensors_in(each)


class AlwaysFinite(TorchFunctionMode):
    """Tensors without values count as finite: a step checks that before its update."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return True if func is torch.isfinite else func(*args, **(kwargs or {}))


@contextmanager
def in_few_operations() -> Iterator[None]:
    """Larger chunks of attention during this block: with fake tensors, the time depends on the number of operations."""
    before, swin.SCORES = swin.SCORES, 2**22
    try:
        yield
    finally:
        swin.SCORES = before


def onto_cpu(module: nn.Module) -> None:
    """Replace a meta module's tensors by new ones on the CPU (`Module.to_empty` fails on modules held twice)."""
    for each in module.modules():
        for name, parameter in list(each.named_parameters(recurse=False)):
            setattr(each, name, nn.Parameter(torch.empty(parameter.shape, dtype=parameter.dtype)))
        for name, buffer in list(each.named_buffers(recurse=False)):
            setattr(each, name, torch.empty(buffer.shape, dtype=buffer.dtype))
