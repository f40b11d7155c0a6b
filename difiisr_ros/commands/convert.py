"""``difiisr convert``: published checkpoints as a folder of weights of this package."""

from __future__ import annotations

from pathlib import Path


def convert(
    unet: Path,
    autoencoder: Path,
    out_dir: Path,
    /,
    *,
    schedule: str | None = None,
    force: bool = False,
) -> None:
    """Convert published checkpoints for this package.

    Args:
        unet: the UNet's .pth file, of ResShift, SinSR or DifIISR.
        autoencoder: the autoencoder's .pth file.
        out_dir: the folder of weights to write.
        schedule: what the UNet was trained with, which its file cannot tell: resshift (v1 and v2),
            resshift-v3 (also bicx4), sinsr, difiisr, or the authors' config file (.yaml).
        force: replace an existing OUT_DIR.
    """
    from difiisr_models.published.convert import convert as convert_checkpoints

    convert_checkpoints(unet, autoencoder, out_dir, schedule=schedule, overwrite=force)
    print(f"{out_dir}: converted; use it as a model: --model {out_dir}")
