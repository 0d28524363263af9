"""Published results to compare a model with. Each is valid for its own data set only.

LPIPS uses AlexNet, FID/256 the patches of HiFiC (256 pixels, on two grids), as in the scripts of the sources. MS-ILLM
counts the bytes of pickled strings as rate. FID on Kodak is omitted: 24 pictures are too few.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

EGIC = "EGIC, arXiv 2309.03244"
SWINT_CHARM = "SwinT-ChARM, Zhu et al., ICLR 2022"
MS_ILLM = "MS-ILLM, arXiv 2301.11189; github.com/facebookresearch/NeuralCompression, projects/illm/results.csv"
CRDR = "CRDR, arXiv 2405.16817; github.com/iwa-shi/CRDR, rd_results/CLIC.csv and kodak.csv"
STABLE_CODEC = "StableCodec, arXiv 2506.21977; github.com/LuizScarlet/StableCodec, results/results.txt"
AEIC = "AEIC, arXiv 2512.12229; github.com/LuizScarlet/AEIC, results/AEIC_ME.txt.txt and AEIC_SE.txt.txt"
PICO = "PICO, arXiv 2605.05148, abstract; github.com/apple/ml-pico, README.md"
CLIC, KODAK = "CLIC 2020 test (428 pictures)", "Kodak (24 pictures)"


@dataclass(frozen=True, kw_only=True)
class Point:
    """One published operating point: bits per pixel, PSNR in dB, and distances where the source gives them."""

    codec: str
    point: str
    data_set: str
    bpp: float
    psnr_db: float
    fid256: float | None = None
    lpips_alex: float | None = None
    dists: float | None = None
    source: str


@dataclass(frozen=True, kw_only=True)
class Saving:
    """A published saving of bits at equal quality (a Bjontegaard rate), in the words of its source."""

    codec: str
    against: str
    measure: str
    saving: str
    source: str


def _series(codec: str, data_set: str, source: str, rows: Sequence[tuple]) -> Iterator[Point]:
    """Points of a codec from rows (bpp, PSNR, FID/256, LPIPS, DISTS)."""
    for bpp, psnr_db, fid256, lpips_alex, dists in rows:
        yield Point(
            codec=codec, point=f"{bpp} bpp", data_set=data_set, bpp=bpp, psnr_db=psnr_db, fid256=fid256,
            lpips_alex=lpips_alex, dists=dists, source=source,
        )  # fmt: skip


# fmt: off
POINTS = (
    Point(codec="EGIC", point="alpha 0", data_set=CLIC, bpp=0.0935, psnr_db=32.03, fid256=28.0, source=EGIC),
    Point(codec="EGIC", point="alpha 1", data_set=CLIC, bpp=0.0935, psnr_db=30.90, fid256=3.43, source=EGIC),
    *_series("MS-ILLM", CLIC, MS_ILLM, (
        (0.0346, 27.88, 6.27, 0.1137, 0.0857),
        (0.0633, 29.24, 4.48, 0.0801, 0.0663),
        (0.1206, 30.87, 2.65, 0.0541, 0.0480),
        (0.2314, 32.84, 1.66, 0.0349, 0.0351),
        (0.3312, 34.11, 1.37, 0.0265, 0.0287),
        (0.5125, 35.88, 1.09, 0.0173, 0.0199),
    )),
    *_series("MS-ILLM", KODAK, MS_ILLM, (
        (0.0443, 24.73, None, 0.1576, 0.1346),
        (0.0806, 25.92, None, 0.1100, 0.1085),
        (0.1532, 27.53, None, 0.0732, 0.0809),
        (0.2958, 29.63, None, 0.0451, 0.0615),
        (0.4324, 31.03, None, 0.0320, 0.0487),
        (0.7092, 33.21, None, 0.0180, 0.0335),
    )),
    *_series("CRDR, beta 3.84", CLIC, CRDR, (
        (0.0797, 30.16, 5.72, 0.0837, 0.0748),
        (0.1401, 32.04, 3.59, 0.0549, 0.0543),
        (0.2644, 34.29, 1.83, 0.0336, 0.0343),
        (0.4893, 36.66, 1.11, 0.0194, 0.0217),
        (0.7246, 38.06, 1.01, 0.0145, 0.0143),
    )),
    *_series("CRDR, beta 3.84", KODAK, CRDR, (
        (0.1094, 27.45, None, 0.0963, 0.1040),
        (0.2043, 29.52, None, 0.0591, 0.0740),
        (0.4024, 32.16, None, 0.0331, 0.0462),
        (0.7329, 34.96, None, 0.0173, 0.0266),
        (1.0503, 36.61, None, 0.0119, 0.0179),
    )),
    *_series("CRDR, beta 0", CLIC, CRDR, (
        (0.0797, 30.90, 41.54, 0.2441, 0.1753),
        (0.1401, 32.88, 30.77, 0.1837, 0.1415),
        (0.2644, 35.26, 19.30, 0.1326, 0.1061),
        (0.4893, 37.64, 10.94, 0.0780, 0.0722),
        (0.7246, 39.20, 7.62, 0.0522, 0.0515),
    )),
    *_series("CRDR, beta 0", KODAK, CRDR, (
        (0.1094, 28.13, None, 0.2641, 0.1974),
        (0.2043, 30.23, None, 0.1724, 0.1514),
        (0.4024, 32.94, None, 0.0992, 0.1030),
        (0.7329, 35.79, None, 0.0523, 0.0660),
        (1.0503, 37.64, None, 0.0365, 0.0469),
    )),
    *_series("StableCodec", CLIC, STABLE_CODEC, (
        (0.0044, 22.13, 6.93, 0.2562, 0.1194),
        (0.0060, 22.56, 5.97, 0.2293, 0.1072),
        (0.0085, 23.20, 5.20, 0.2041, 0.0972),
        (0.0106, 23.58, 4.78, 0.1876, 0.0897),
        (0.0140, 24.03, 4.29, 0.1705, 0.0820),
        (0.0170, 24.16, 4.15, 0.1625, 0.0779),
        (0.0216, 24.58, 3.73, 0.1508, 0.0733),
        (0.0253, 24.69, 3.52, 0.1439, 0.0699),
        (0.0308, 24.93, 3.34, 0.1380, 0.0674),
    )),
    *_series("StableCodec", KODAK, STABLE_CODEC, (
        (0.0058, 20.27, None, 0.3097, 0.1518),
        (0.0078, 20.73, None, 0.2734, 0.1382),
        (0.0108, 21.31, None, 0.2444, 0.1246),
        (0.0133, 21.65, None, 0.2285, 0.1167),
        (0.0171, 22.05, None, 0.2069, 0.1079),
        (0.0203, 22.30, None, 0.1952, 0.1030),
        (0.0250, 22.63, None, 0.1821, 0.0981),
        (0.0286, 22.78, None, 0.1743, 0.0965),
        (0.0341, 23.01, None, 0.1664, 0.0916),
    )),
    *_series("AEIC-ME", CLIC, AEIC, (
        (0.0046, 22.30, 5.73, 0.2542, 0.1052),
        (0.0078, 23.56, 4.59, 0.2029, 0.0867),
        (0.0129, 24.67, 3.64, 0.1630, 0.0722),
        (0.0200, 25.56, 3.03, 0.1346, 0.0625),
        (0.0296, 26.19, 2.75, 0.1164, 0.0564),
    )),
    *_series("AEIC-ME", KODAK, AEIC, (
        (0.0056, 20.00, None, 0.3114, 0.1399),
        (0.0101, 21.07, None, 0.2442, 0.1164),
        (0.0168, 22.04, None, 0.1978, 0.1005),
        (0.0260, 22.77, None, 0.1638, 0.0877),
        (0.0376, 23.30, None, 0.1427, 0.0821),
    )),
    *_series("AEIC-SE", CLIC, AEIC, (
        (0.0033, 21.16, 7.35, 0.2718, 0.1139),
        (0.0059, 22.58, 5.29, 0.2154, 0.0945),
        (0.0104, 23.91, 4.00, 0.1722, 0.0785),
        (0.0177, 25.08, 2.95, 0.1382, 0.0647),
        (0.0282, 25.99, 2.45, 0.1150, 0.0558),
    )),
    *_series("AEIC-SE", KODAK, AEIC, (
        (0.0041, 18.99, None, 0.3416, 0.1549),
        (0.0079, 20.17, None, 0.2733, 0.1274),
        (0.0143, 21.30, None, 0.2154, 0.1077),
        (0.0241, 22.16, None, 0.1750, 0.0915),
        (0.0370, 22.90, None, 0.1468, 0.0815),
    )),
    Point(codec="SwinT-ChARM", point="beta 0.0003", data_set=KODAK, bpp=0.932, psnr_db=37.59, source=SWINT_CHARM),
)
SAVINGS = (
    Saving(codec="PICO", against="AV1, AV2, VVC, ECM and JPEG AI", measure="human ratings",
           saving="2.3 to 3 times fewer bits", source=PICO),
    Saving(codec="PICO", against="the best learned codecs", measure="human ratings",
           saving="20 to 40 % fewer bits", source=PICO),
)
# fmt: on
