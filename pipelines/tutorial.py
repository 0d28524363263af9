# %% [markdown]
# # EGIC tutorial
# Compress a picture, decompress it at three alphas, then run one training step of each of the paper's four stages.
# The model is the one in the package. To use your own, for example from `make demo`, set
# `EGIC_MODEL=models:/egic-orp@best` (or a folder). `EGIC_PICTURE=photo.png` uses your own picture.

# %%
import builtins
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

import egic
from egic import pictures
from egic.cli import model_refs
from egic.metrics.perceptual import LPIPS
from egic.networks.discriminator import Discriminator
from egic.networks.orp import ResidualHead
from egic.report import anchors, panels
from egic.training import steps
from jobs.config.presets import tiny
from jobs.data.sources.coco_classes import CATEGORIES
from jobs.data.sources.scenes.scenes import SceneConfig, draw_scene

FOLDER = Path("outputs/tutorial")
FOLDER.mkdir(parents=True, exist_ok=True)


def show(name, row, titles):
    """Pictures side by side: in a file, and in a notebook below the cell."""
    sheet, path = panels.panel([row], titles), FOLDER / f"{name}.png"
    sheet.save(path)
    getattr(builtins, "display", lambda sheet: print(path))(sheet)


# %% [markdown]
# ## Load
# A model is a folder of safetensors and JSON files: a codec, and the residual head (ORP), which alpha needs.

# %%
torch.manual_seed(0)
chosen = os.environ.get("EGIC_MODEL")
model = egic.load(model_refs.folder_of(chosen))
print(f"{sum(p.numel() for p in model.codec.parameters()):,} parameters")

# %% [markdown]
# ## Compress, decompress
# One file decodes at every alpha: 0 is the most faithful picture, 1 the most realistic one. For comparison: the JPEG
# file of nearest size.

# %%
own = os.environ.get("EGIC_PICTURE")
photograph = Path(own) if own else Path(egic.__file__).parent / "demo" / "photographs" / "coffee.jpg"
x = pictures.read(photograph.read_bytes())[0]
data = model.compress(x)
(FOLDER / "picture.egic").write_bytes(data)
decoded = {f"alpha {alpha:g}": (model.decompress(data, alpha), len(data)) for alpha in (0.0, 0.5, 1.0)}
jpeg = anchors.Matcher(anchors.find(["jpeg"])[0][0], x).nearest(len(data))
decoded["JPEG"] = (jpeg.picture, jpeg.num_bytes)
psnr = {name: 10 * np.log10(255**2 / ((x_hat - x.astype(float)) ** 2).mean()) for name, (x_hat, _) in decoded.items()}
titles = [f"original, {x.shape[1]} x {x.shape[0]}"]
titles += [f"{name}: {size:,} bytes, {psnr[name]:.1f} dB" for name, (_, size) in decoded.items()]
show("alphas", [x, *(x_hat for x_hat, _ in decoded.values())], titles)

# %% [markdown]
# ## A training step of each stage
# Training needs labels: the class of each pixel, 1 to 133, or 0 for void. A drawn scene has them.
# `segmentation`: the discriminator learns to label real pictures. `mse-codec`: the codec learns `mse255 + beta * bits`.
# `gan`: trains g_s only, first with distortion and LPIPS, then also with the discriminator. `orp`: the residual head
# learns to turn g_s's picture into the most faithful one.

# %%
scene, ids, segments = draw_scene(np.random.default_rng(4), SceneConfig(min_side=256, max_side=256))
class_of = {category.id: number for number, category in enumerate(CATEGORIES, 1)}
label = np.zeros(ids.shape, np.int64)
for segment in segments:
    label[ids == segment["id"]] = 0 if segment["iscrowd"] else class_of[segment["category_id"]]
real, y = (torch.tensor(np.stack([a, a[:, ::-1]])) for a in (scene, label))  # the scene and its mirror image
real = real.permute(0, 3, 1, 2).float()
batch = steps.Batch(real, y, weight=torch.ones(y.shape), position=[0, 1])  # positions seed each sample's noise
codec, orp, lpips = model.codec, ResidualHead(model.codec.config), LPIPS(None)  # LPIPS on a random backbone
orp.start_from(codec.g_s)
fitting = replace(tiny().discriminator, latent_channels=codec.config.dims[-1], num_categories=len(CATEGORIES))
discriminator = Discriminator(fitting)
parts = {"codec": codec, "g_s": codec.g_s, "discriminator": discriminator, "orp": orp}
adam = {name: torch.optim.Adam(part.parameters(), 1e-4) for name, part in parts.items()}
for_d = steps.SegmentationNets(discriminator=discriminator, trained=parts)
for_codec = steps.CodecNets(codec=codec, trained=parts)
for_gan = steps.GanNets(codec=codec, discriminator=discriminator, lpips=lpips, trained=parts)
for_orp = steps.OrpNets(codec=codec, orp=orp, trained=parts)
losses = {
    "segmentation": steps.segmentation_step(for_d, adam, batch, clip_norm=0),
    "mse-codec": steps.mse_codec_step(for_codec, adam, batch, beta=0.01, clip_norm=10, seed=0),
    "gan, warm-up": steps.warmup_step(for_gan, adam, batch, loss=steps.GanLoss(), clip_norm=0, seed=0),
    "gan, adversarial": steps.gan_step(for_gan, adam, batch, loss=steps.GanLoss(), clip_norm=0, seed=0),
    "orp": steps.orp_step(for_orp, adam, batch, clip_norm=0, seed=0),
}
for stage, terms in losses.items():
    print(f"{stage}: " + ", ".join(f"{name} {value.item():.4g}" for name, value in terms.items()))
with torch.no_grad():
    seen = discriminator(real[:1]).argmax(1)[0].numpy()
show("labels", [scene, *map(panels.label_colours, (label, seen))], ["picture", "labels", "the discriminator's"])
