"""Joins trained parts to one file of the official StreamingSVD layout, fp16, which Load StreamingSVD reads.

python -m training.export --out DIR [--base FILE] [--file NAME.safetensors]
python -m training.export --out DIR --stage vfi      # that network alone, which is a whole file already
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from streaming_core.errors import StreamingError
from streaming_core.models.registry import shapes_of
from streaming_core.models.streamingsvd.detect import CAM_PREFIX, UNET_PREFIX, detect_streamingsvd
from streaming_core.models.streamingsvd.file import cam_weights, split_file

from .layout import Base, Weights, read_base, read_stage, write_weights

ALONE = {"vfi": "demo_ema_vfi_t.safetensors", "enhancer": "demo_i2vgenxl.safetensors"}
"""Stages whose network is a whole file. Load EMA-VFI tells weights for any time by the _t."""


def joined(base: Base, cam: Mapping[str, Tensor], dtype: torch.dtype = torch.float16) -> Weights:
    """A whole StreamingSVD file; `cam` is keyed as `CamNetwork`. A CAM that the base brings along is left out.

    Raises `CheckpointError` where the parts make no file that the loader would take.
    """
    former = {key if key.startswith(CAM_PREFIX) else UNET_PREFIX + key for key in cam_weights(base.tensors)}
    tensors = {key: tensor for key, tensor in base.tensors.items() if key not in former}
    tensors.update({key if key.startswith(CAM_PREFIX) else UNET_PREFIX + key: tensor for key, tensor in cam.items()})
    detect_streamingsvd(shapes_of(tensors), "the joined file")
    split_file(tensors, "the joined file")
    return narrowed(tensors, dtype)


def narrowed(tensors: Mapping[str, Tensor], dtype: torch.dtype = torch.float16) -> Weights:
    return {key: tensor.to(dtype) if tensor.is_floating_point() else tensor for key, tensor in tensors.items()}


def export(folder: Path, target: Path, base: Path | None = None) -> int:
    """Write the file of a training folder; returns its size in bytes. `base`: what CAM was trained on, if not there."""
    write_weights(target, joined(read_base(folder, base, with_unet=True), read_stage(folder, "cam")))
    return target.stat().st_size


def export_stage(folder: Path, stage: str, target: Path) -> int:
    """Write what one stage made as a file of its own; returns its size in bytes."""
    write_weights(target, narrowed(read_stage(folder, stage)))
    return target.stat().st_size


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m training.export", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="the folder that was trained in")
    parser.add_argument("--base", type=Path, help="the video model that CAM was trained on, if not the folder's own")
    parser.add_argument("--stage", choices=tuple(ALONE), help="write this network alone, not a StreamingSVD file")
    parser.add_argument("--file", type=Path, help="file to write (default: in DIR, under the demo's name)")
    args = parser.parse_args(argv)
    target = args.file or args.out / ALONE.get(args.stage, "streamingsvd.safetensors")
    try:
        size = export_stage(args.out, args.stage, target) if args.stage else export(args.out, target, args.base)
    except StreamingError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{target}: {size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
