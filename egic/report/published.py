"""Published results to compare a model with. Each holds on its own data set only."""

from dataclasses import dataclass

EGIC = "EGIC, arXiv 2309.03244"
MS_ILLM = "MS-ILLM, Muckley et al. 2023, arXiv 2301.11189"
SWINT_CHARM = "SwinT-ChARM, Zhu et al., ICLR 2022"


@dataclass(frozen=True, kw_only=True)
class Point:
    """One published operating point: bits per pixel, PSNR in dB, FID/256 where the source gives one."""

    codec: str
    point: str
    data_set: str
    bpp: float
    psnr_db: float
    fid256: float | None
    source: str


CLIC = "CLIC 2020 test (428 pictures)"
POINTS = (
    Point(codec="EGIC", point="alpha 0", data_set=CLIC, bpp=0.0935, psnr_db=32.03, fid256=28.0, source=EGIC),
    Point(codec="EGIC", point="alpha 1", data_set=CLIC, bpp=0.0935, psnr_db=30.90, fid256=3.43, source=EGIC),
    *(
        Point(codec="MS-ILLM", point=f"{bpp} bpp", data_set=CLIC, bpp=bpp, psnr_db=psnr_db, fid256=fid, source=MS_ILLM)
        for bpp, fid, psnr_db in (
            (0.0346, 6.27, 27.88),
            (0.0633, 4.48, 29.24),
            (0.1206, 2.65, 30.87),
            (0.2314, 1.66, 32.83),
        )
    ),
    Point(
        codec="SwinT-ChARM", point="beta 0.0003", data_set="Kodak", bpp=0.932, psnr_db=37.59, fid256=None,
        source=SWINT_CHARM,
    ),
)  # fmt: skip
