"""The codec on Ray Serve, for `egic demo --serve`: stateless replicas, behind an object with the methods of a model.

The page keeps the decoded pictures that alpha needs, so that any replica can answer any call. Calls use Serve's
handles; no port is opened.
"""

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from ray import serve
from ray.exceptions import RayTaskError
from torch import Tensor

from egic import artifact
from egic.errors import UserError
from egic.model import load
from jobs.cluster.start import start_ray

NAME = "egic-demo"


class Replica:
    """One model on one device."""

    def __init__(self, folder: Path, device: str, precision: str, threads: int):
        torch.set_num_threads(threads)
        self.model = load(folder, device, precision)

    def compress(self, image: np.ndarray, **rate: int) -> bytes:
        return self.model.compress(image, **rate)

    def decode_pictures(self, data: bytes) -> tuple[np.ndarray, np.ndarray | None]:
        """As `Model.decode_pictures`, as arrays on the CPU."""
        x_gan, x_mse = self.model.decode_pictures(data)
        return x_gan.cpu().numpy(), None if x_mse is None else x_mse.cpu().numpy()


class Replicas:
    """`compress` and `decode_pictures` of a model, answered by whichever replica is free."""

    def __init__(self, handle: serve.handle.DeploymentHandle):
        self.handle = handle

    def compress(self, image: np.ndarray, **rate: int) -> bytes:
        """rate: quality or max_bytes, as `egic.model.Model.compress` takes them."""
        return _answer(self.handle.compress.remote(image, **rate))

    def decode_pictures(self, data: bytes) -> tuple[Tensor, Tensor | None]:
        x_gan, x_mse = _answer(self.handle.decode_pictures.remote(data))
        return torch.tensor(x_gan), None if x_mse is None else torch.tensor(x_mse)


def _answer(response: Any):
    """The result of a call; raises the model's own error, without Ray's traceback."""
    try:
        return response.result()
    except RayTaskError as error:
        raise error.cause from None


@contextlib.contextmanager
def replicas(folder: Path, number: int, device: str, precision: str, threads: int | None) -> Iterator[Replicas]:
    """Replicas of the model in `folder`, on a running Ray or on one that is started and ended with them.

    Every node must reach `folder` under the same path. Raises UserError when they can never fit on the cluster.
    """
    if "codec" not in artifact.read_config(folder):
        raise UserError(f"{folder} holds no codec; name an MSE-codec, GAN or ORP model")
    ours = not ray.is_initialized()
    if ours:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        start_ray()
    try:
        options = _resources(number, device, threads)
        deployment = serve.deployment(
            name="codec", num_replicas=number, ray_actor_options=options, max_ongoing_requests=1,
            logging_config={"log_level": "WARNING", "enable_access_log": False},
        )(Replica)  # fmt: skip
        serve.start(proxy_location="Disabled", logging_config={"log_level": "WARNING"})
        logging.getLogger("ray.serve").setLevel(logging.WARNING)  # the level in the driver
        where = "cuda" if options["num_gpus"] else "cpu"  # a replica sees only its own GPU
        app = deployment.bind(folder, where, precision, options["num_cpus"])
        try:
            yield Replicas(serve.run(app, name=NAME, route_prefix=None))
        finally:
            serve.delete(NAME)
    finally:
        if ours:
            serve.shutdown()
            ray.shutdown()


def _resources(number: int, device: str, threads: int | None) -> dict[str, int]:
    """What each replica reserves: its share of the CPUs, and a GPU of its own on CUDA."""
    gpu = device.startswith("cuda")
    there = ray.cluster_resources()
    cpus = int(there.get("CPU", 0))
    each = threads or max(1, cpus // number)
    for name, wanted, has in (("CPU", number * each, cpus), ("GPU", number * gpu, int(there.get("GPU", 0)))):
        if wanted > has:
            raise UserError(f"{number} replicas need {wanted} {name}, but {has} exist; lower --serve or --threads")
    return {"num_cpus": each, "num_gpus": int(gpu)}
