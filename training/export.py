"""Writes what was trained as the files that the pack loads, in fp16: python -m training.export --out DIR --stage STAGE

python -m training.export --out DIR                     # StreamingSVD: vae, unet and cam as one file
python -m training.export --out DIR --base FILE         # the same, with CAM trained on a file of your own
python -m training.export --out DIR --stage ms_cam      # StreamingModelscope, and its base text-to-video UNet
python -m training.export --out DIR --stage lvdm_pred   # LVDM's prediction model, autoencoder included; others likewise
python -m training.export --out DIR --stage enhancer    # that network alone, which is a whole file; vfi likewise
python -m training.export --out DIR --stage droplet     # DropletVideo: transformer, and VAE with its config.json
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import dev

FILES = {
    "cam": ("streamingsvd.safetensors",),
    "ms_cam": ("demo_streamingmodelscope.safetensors", "demo_modelscope_t2v.safetensors"),
    "enhancer": ("demo_i2vgenxl.safetensors",),
    "droplet": ("demo_dropletvideo.safetensors", "demo_dropletvideo/demo_dropletvideo_vae.safetensors"),
    "lvdm_short": ("demo_lvdm_short.safetensors",),
    "lvdm_pred": ("demo_lvdm_prediction.safetensors",),
    "lvdm_interp": ("demo_lvdm_interpolation.safetensors",),
    "vfi": ("demo_ema_vfi_t.safetensors",),
}
"""By stage, the files that it ends in. Load EMA-VFI tells weights for any time by the _t. A config.json is read for
every file that it lies next to, so the one of DropletVideo's VAE needs a folder."""


def export(
    folder: Path, stage: str = "cam", base: Path | None = None, into: Path | None = None, name: str | None = None
) -> list[Path]:
    """Write the files of a stage `into` a folder, by default the training folder, and return them.

    `name`: another one than `FILES` has, for the first of them.
    """
    from .files import files_of, narrowed, settings_of
    from .layout import write_weights

    into = into or folder
    into.mkdir(parents=True, exist_ok=True)
    paths = [into / (name or FILES[stage][0]), *(into / other for other in FILES[stage][1:])]
    for path, tensors in zip(paths, files_of(folder, stage, base), strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_weights(path, narrowed(tensors))
    for path, settings in zip(paths, settings_of(stage), strict=False):
        if settings:
            path.with_name("config.json").write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
    return paths


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m training.export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="the folder that was trained in")
    parser.add_argument("--stage", choices=tuple(FILES), default="cam", help="what to write (default cam)")
    parser.add_argument("--base", type=Path, help="the file that was trained on, if not the folder's own")
    parser.add_argument("--file", type=Path, help="file to write (default: in DIR, under the demo's name)")
    args = parser.parse_args(argv)
    dev.ensure_environment("training.export")
    from streaming_core.errors import StreamingError

    into, name = (args.file.parent, args.file.name) if args.file else (None, None)
    try:
        paths = export(args.out, args.stage, args.base, into, name)
    except StreamingError as error:
        print(error, file=sys.stderr)
        return 1
    for path in paths:
        print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
