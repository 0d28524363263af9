"""Time the TensorFlow reference's training steps and codec, one at a time, on request of a benchmark.

    PYTHON tests/bench/reference_steps.py FOLDER [--threads 2]    names on stdin -> wall and CPU time of each

FOLDER has checkouts of the authors' public code, github.com/Nikolai10/EGIC and github.com/Nikolai10/SwinT-ChARM, named
EGIC and SwinT-ChARM. PYTHON has TensorFlow 2.14, tensorflow-compression 2.14.1 and protobuf 3.20 (so it is 3.11 or
older), in an environment of its own. Networks, losses and train_step are theirs, as a tf.function, with Adam; only
LPIPS, whose graph is a download, counts as zero. The script of the segmentation stage is not published: their
discriminator makes a step without its condition instead. Pictures and labels are random. The codec is their networks
as a tf.function on 512x768 pixels, from the picture to the rounded latents and back; nothing is coded. The first call
of a name builds and warms it.
"""

import argparse
import os
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
SIZE, LATENT = 256, 320
CODEC = {
    "latent_depth": LATENT, "hyperprior_depth": 192, "num_slices": 10, "max_support_slices": 10,
    "num_scales": 64, "scale_min": 0.11, "scale_max": 256.0,
}  # fmt: skip


def import_reference(checkouts: Path) -> None:
    """Put both checkouts on the path, with stand-ins for packages that only their input pipelines need."""
    for name in ("SwinT-ChARM", "EGIC/src/swin-transformers-tf", "EGIC/src"):
        folder = checkouts / name
        if not folder.is_dir():
            raise SystemExit(f"reference_steps: {folder} is not a folder; give one with EGIC and SwinT-ChARM")
        sys.path.insert(0, str(folder))
    for name in ("tensorflow_datasets", "eval_utils", "deeplab2.data.dataset", "deeplab2.trainer.runner_utils"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules["eval_utils"].evaluate_ds = None
    for name in ("deeplab2.data", "deeplab2.trainer"):
        parent = sys.modules.setdefault(name, types.ModuleType(name))
        for child in ("dataset", "runner_utils"):
            setattr(parent, child, sys.modules.get(f"{name}.{child}"))


def batch(num: int) -> dict:
    """A batch in the format of their input pipeline."""
    import numpy as np
    import tensorflow as tf

    rng = np.random.default_rng(0)
    label = rng.integers(0, 134, (num, SIZE // 32, SIZE // 32)).repeat(32, 1).repeat(32, 2).astype(np.int32)
    return {
        "image": tf.constant(rng.uniform(0, 255, (num, SIZE, SIZE, 3)), tf.float32),
        "semantic_gt": tf.constant(label),
        "semantic_loss_weight": tf.constant(np.where(label % 5 == 0, 3.0, 1.0), tf.float32),
    }


def segmentation_loss():
    """Their loss with the options of their configuration."""
    from deeplab2 import config_pb2
    from deeplab2.model.loss import loss_builder

    options = config_pb2.LossOptions()
    options.semantic_loss.name, options.semantic_loss.weight = "softmax_cross_entropy", 1.0
    options.semantic_loss.top_k_percent = 1.0
    return loss_builder.DeepLabFamilyLoss(
        options, deeplab_options=None, num_classes=135, ignore_label=0, ignore_depth=None, thing_class_ids=()
    )


def mse_codec() -> Callable[[], object]:
    import tensorflow as tf
    from zyc2022 import ZYC2022Model

    model = ZYC2022Model(patchsize=SIZE, lmbda=0.003, num_filters=192, **CODEC)
    model.compile(optimizer=tf.keras.optimizers.Adam(1e-4))
    return taking(model.train_step, batch(2)["image"])


def gan(warm_up: bool = False) -> Callable[[], object]:
    """The step splits two pictures; the warm-up uses only the first half."""
    import kkshms2024
    import tensorflow as tf
    from oasis_c import make_oasis_disc

    kkshms2024.compute_perceptual_loss = lambda x, x_hat, path: tf.constant(0.0)
    disc = None if warm_up else make_oasis_disc((SIZE, SIZE, 3), (SIZE // 16, SIZE // 16, LATENT))
    model = kkshms2024.KKSHMS2024Model(warm_up, 2.0, disc, None, segmentation_loss(), **CODEC)
    model.compile(d_optimizer=tf.keras.optimizers.Adam(1e-4), g_optimizer=tf.keras.optimizers.Adam(1e-4))
    return taking(model.train_step, batch(2))


def orp() -> Callable[[], object]:
    import kkshms2024_orp
    import tensorflow as tf

    kkshms2024_orp.compute_perceptual_loss = lambda x, x_hat, path: tf.constant(0.0)
    model = kkshms2024_orp.KKSHMS2024Model(lmbda=2.0, sum_wr=None, **CODEC)
    model.compile(optimizer=tf.keras.optimizers.Adam(1e-4))
    return taking(model.train_step, batch(2))


def segmentation() -> Callable[[], object]:
    import tensorflow as tf
    from deeplab2 import common
    from loss import seg_loss
    from oasis_c import make_oasis_disc

    whole = make_oasis_disc((SIZE, SIZE, 3), (SIZE // 16, SIZE // 16, LATENT))
    last = next(v for v in whole.layers if isinstance(v, tf.keras.Sequential) and v.output_shape[-1] == 135)
    logits = last.get_output_at(len(last.inbound_nodes) - 1)
    disc, criterion = tf.keras.Model(whole.inputs[0], logits), segmentation_loss()
    optimizer = tf.keras.optimizers.Adam(1e-4)

    def train_step(x: dict) -> tf.Tensor:
        with tf.GradientTape() as tape:
            loss = seg_loss(x, {common.PRED_SEMANTIC_LOGITS_KEY: disc(x["image"], training=True)}, criterion)
        variables = disc.trainable_variables
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        return loss

    return taking(train_step, batch(2))


def codec(way: str) -> Callable[[], object]:
    """The networks of encoding, or those of decoding."""
    import tensorflow as tf
    from zyc2022 import ZYC2022Model

    model = ZYC2022Model(patchsize=SIZE, lmbda=0.003, num_filters=192, **CODEC)
    x = tf.random.uniform((1, 512, 768, 3), 0, 255)
    z_hat, rest = tf.round(tf.random.normal((1, 8, 12, 192))), tf.round(tf.random.normal((1, 32, 48, LATENT)))

    def latents(z_hat: tf.Tensor, residual: Callable[[int, tf.Tensor], tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
        means, scales = tf.split(model.hyper_synthesis_mean_scale_transform(z_hat), 2, axis=-1)
        num, size = model.num_slices, model.slice_size
        found, indices = [], []
        for k in range(num):
            part = slice(k * size, (k + 1) * size)
            mu = model.cc_mean_transforms[k](tf.concat([means[..., part], *found], -1))
            indices.append(tf.round(model.cc_scale_transforms[k](tf.concat([scales[..., part], *found], -1))))
            found.append(residual(k, mu) + mu)
        return tf.concat(found, -1), tf.concat(indices, -1)

    def compress(x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        y = model.analysis_transform(x)
        slices = tf.split(y, model.num_slices, axis=-1)
        z_hat = tf.round(model.hyper_analysis_transform(y))
        return latents(z_hat, lambda k, mu: tf.round(slices[k] - mu))

    def decompress(given: tuple[tf.Tensor, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
        z_hat, rest = given
        slices = tf.split(rest, model.num_slices, axis=-1)
        y_hat, indices = latents(z_hat, lambda k, mu: slices[k])
        return model.synthesis_transform(y_hat), indices

    return taking(compress, x) if way == "compress" else taking(decompress, (z_hat, rest))


def taking(train_step: Callable, data: object) -> Callable[[], object]:
    """The step as a graph on the same data; waits for its result."""
    import tensorflow as tf

    function = tf.function(train_step)
    return lambda: tf.nest.map_structure(lambda t: t.numpy(), function(data))


STEPS = {
    "mse_codec": mse_codec, "gan_warmup": lambda: gan(warm_up=True), "gan": gan, "orp": orp,
    "segmentation": segmentation, "compress": lambda: codec("compress"), "decompress": lambda: codec("decompress"),
}  # fmt: skip


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("checkouts", type=Path)
    arguments.add_argument("--threads", type=int, default=2)
    args = arguments.parse_args()
    answers, sys.stdout = sys.stdout, sys.stderr  # Keras prints summaries; keep stdout for answers
    import_reference(args.checkouts)
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(args.threads)
    tf.config.threading.set_inter_op_parallelism_threads(args.threads)
    current, step = "", None
    for line in sys.stdin:
        if (name := line.strip()) != current:
            step = None  # first free the memory of the last one
            current, step = name, STEPS[name]()
            for _ in range(2):
                step()
        start, cpu = time.perf_counter(), time.process_time()
        step()
        print(time.perf_counter() - start, time.process_time() - cpu, file=answers, flush=True)


if __name__ == "__main__":
    main()
