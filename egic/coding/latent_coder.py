"""Latents -> payload -> latents. Both ways share the ChARM loop, `Codec.decode_latents`, and differ in its `code`.

Latents that are completely outside the picture are not coded: both sides use z_hat = 0 and y_hat = mu there.
Stream: number of groups, phases, z, then slice by slice the symbols round(y - mu), each slice sorted by its tables.
"""

import hashlib
import json
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict

import numpy as np
import torch
from torch import Tensor

from egic.coding import frequency_tables, robust_rounding
from egic.coding.bitstream import ID_BYTES, BitstreamError
from egic.coding.range_coder import MAX_SYMBOL, Decoder, Encoder, Tables
from egic.errors import UserError
from egic.networks.charm import Index
from egic.networks.codec import STRIDE_Y, STRIDE_Z, Codec

Z_REACH = 64
_SWITCHES = threading.RLock()
# What the decoder's y_hat depends on; frozen after the first stage
_DECODING = ("h_s.", "charm.", "prior.", "gains.log_inverse", "gains.offset")


def identity(codec: Codec) -> bytes:
    """The first bytes of a sha256 over the weights and configuration that decoding the symbols of a file depends on.

    g_a and g_s are not part of it: one file decodes with every stage of a family (MSE codec, GAN, ORP).
    """
    config = {k: v for k, v in asdict(codec.config).items() if k not in ("depths", "dims")}
    if not codec.config.rates:
        del config["rates"]  # models without rates keep the identity that they had before rates existed
    total = hashlib.sha256(json.dumps(config | {"latents": codec.config.dims[-1]}, sort_keys=True).encode())
    for name, tensor in sorted(codec.state_dict().items()):
        if name.startswith(_DECODING):
            values = tensor.detach().to("cpu", torch.float32).contiguous().numpy().astype("<f4")
            total.update(f"{name} {values.shape}\n".encode() + values.tobytes())
    return total.digest()[:ID_BYTES]


@contextmanager
def exact_float32(device: torch.device) -> Iterator[None]:
    """Disable TF32 on GPUs, where torch's convolutions use it by default: its 10-bit mantissa is far too inexact.

    The switches belong to the process: one thread at a time is within this block.
    """
    if device.type != "cuda":
        yield
        return
    with _SWITCHES:
        before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = False
        try:
            with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
                yield
        finally:
            torch.backends.cuda.matmul.allow_tf32 = before


class LatentCoder:
    """Encoder and decoder of one model's latents, with its integer tables."""

    def __init__(self, codec: Codec):
        self.codec = codec
        state = {k: v.detach().cpu().numpy() for k, v in codec.prior.named_parameters()}
        matrices, biases = ([state[f"{kind}.{i}"] for i in range(3)] for kind in ("matrices", "biases"))
        factors = [state[f"factors.{i}"] for i in range(2)]
        self._z = Tables(frequency_tables.factorized_tables(matrices, biases, factors, Z_REACH))
        self._y = Tables(robust_rounding.gaussian_tables())
        self._phase = robust_rounding.phase_counts()

    def _areas(self, height: int, width: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Sizes of the coded parts of y and z."""
        y, z = ((-(-height // stride), -(-width // stride)) for stride in (STRIDE_Y, STRIDE_Z))
        return y, z

    def _padded(self, height: int, width: int) -> tuple[int, int]:
        """Size of z inside the networks."""
        m = self.codec.config.multiple
        return -(-height // m) * m // STRIDE_Z, -(-width // m) * m // STRIDE_Z

    def encode(self, y: Tensor, height: int, width: int) -> tuple[bytes, int, Tensor]:
        """y (1, M, H/16, W/16) of the padded picture -> payload, CRC-32 of the symbols, y_hat."""
        (h, w), (hz, wz) = self._areas(height, width)
        z = torch.round(self.codec.h_a(y).float())[:, :, :hz, :wz]
        slices: list[Tensor] = []

        def code(k: int, mu: Tensor, index: Index) -> Tensor:
            part = slice(k * self.codec.charm.width, (k + 1) * self.codec.charm.width)
            symbols = torch.zeros_like(mu)
            symbols[..., :h, :w] = torch.round(y[:, part] - mu)[..., :h, :w]
            slices.append(torch.stack([symbols, index()])[..., :h, :w])
            return symbols + mu

        with exact_float32(y.device):
            y_hat = self.codec.decode_latents(self._z_hat(z, height, width), code)
        z_symbols = _integers(z)
        symbols, index = torch.stack(slices, 1).cpu()  # one copy: a GPU does not wait within the loop
        index = index.numpy().ravel()
        if not np.isfinite(index).all():
            raise UserError("the entropy model gives non-finite scales; the model is broken")
        stream = Encoder()
        groups_code, phase = robust_rounding.choose(index)
        stream.uniform([groups_code], 128)
        stream.encode_plain(phase, self._phase)
        stream.encode(z_symbols, _channels(self.codec.config.hyper_dims[-1], hz * wz), self._z)
        phase = np.resize(phase, len(index))  # symbol j belongs to group j modulo their number
        tables = robust_rounding.table_of(index, phase)
        crc = zlib.crc32(z_symbols.astype("<i4").data)
        for symbols_k, table in zip(symbols, np.split(tables, len(symbols)), strict=True):
            values = _integers(symbols_k)
            stream.encode(values, table, self._y)
            crc = zlib.crc32(values.astype("<i4").data, crc)
        return stream.bytes(), crc, y_hat

    def decode(self, payload: bytes, height: int, width: int, symbols_crc: int) -> Tensor:
        """Payload -> y_hat (1, M, H/16, W/16) of the padded picture. Raises BitstreamError."""
        (h, w), (hz, wz) = self._areas(height, width)
        channels, width_k = self.codec.config.hyper_dims[-1], self.codec.charm.width
        stream = Decoder(payload)
        groups = robust_rounding.num_groups(int(stream.uniform(1, 128)[0]))
        if groups > self.codec.config.dims[-1] * h * w * 2:
            raise BitstreamError("damaged .egic file: it claims more groups than symbols")
        phase = stream.decode_plain(groups, self._phase)
        z_symbols = stream.decode(_channels(channels, hz * wz), self._z)
        device = next(self.codec.charm.parameters()).device
        z = torch.from_numpy(z_symbols).to(device, torch.float32).view(1, channels, hz, wz)
        crc = zlib.crc32(z_symbols.astype("<i4").data)

        def code(k: int, mu: Tensor, index: Index) -> Tensor:
            nonlocal crc
            index_k = index()[..., :h, :w].cpu().numpy().ravel()
            group = np.arange(k * len(index_k), (k + 1) * len(index_k)) % groups
            table = robust_rounding.table_of(index_k, phase[group])
            values = stream.decode(table, self._y)
            crc = zlib.crc32(values.astype("<i4").data, crc)
            symbols = torch.zeros_like(mu)
            symbols[..., :h, :w] = torch.from_numpy(values).to(device, torch.float32).view(1, width_k, h, w)
            return symbols + mu

        with exact_float32(device):
            y_hat = self.codec.decode_latents(self._z_hat(z, height, width), code)
        if crc != symbols_crc:
            raise BitstreamError(
                "the decoded symbols do not fit their checksum: "
                "the file was made for another model, or this machine's arithmetic drifts beyond what it allows"
            )
        return y_hat

    def _z_hat(self, z: Tensor, height: int, width: int) -> Tensor:
        """Coded part of z -> all of z_hat, 0 outside."""
        hz, wz = self._padded(height, width)
        return torch.nn.functional.pad(z, (0, wz - z.shape[3], 0, hz - z.shape[2]))


def _channels(number: int, size: int) -> np.ndarray:
    """Table of each z: its channel."""
    return np.repeat(np.arange(number, dtype=np.int32), size)


def _integers(symbols: Tensor) -> np.ndarray:
    """Whole-valued float tensor -> int32 (n,). Raises UserError for values that only a broken network produces."""
    values = symbols.detach().cpu().numpy().ravel()
    if not (np.abs(values) < MAX_SYMBOL).all():  # false for NaN too
        raise UserError("the latents are not finite or absurdly large; the model is broken")
    return values.astype(np.int32)
