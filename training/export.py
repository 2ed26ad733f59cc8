"""Writes what was trained as the files that the pack loads, in fp16: python -m training.export --out DIR --stage STAGE

python -m training.export --out DIR                     # StreamingSVD: vae, unet and cam as one file
python -m training.export --out DIR --base FILE         # the same, with CAM trained on a file of your own
python -m training.export --out DIR --stage ms_cam      # StreamingModelscope, and its base text-to-video UNet
python -m training.export --out DIR --stage enhancer    # that network alone, which is a whole file; vfi likewise
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from streaming_core.errors import StreamingError
from streaming_core.models.modelscope import detect as modelscope
from streaming_core.models.modelscope.weights import refuse_unread
from streaming_core.models.registry import shapes_of
from streaming_core.models.streamingsvd.detect import CAM_PREFIX, UNET_PREFIX, detect_streamingsvd
from streaming_core.models.streamingsvd.file import cam_weights, split_file

from .layout import Base, Weights, host, read_base, read_stage, write_weights
from .modelscope_towers import frozen_parts

FILES = {
    "cam": ("streamingsvd.safetensors",),
    "ms_cam": ("demo_streamingmodelscope.safetensors", "demo_modelscope_t2v.safetensors"),
    "enhancer": ("demo_i2vgenxl.safetensors",),
    "vfi": ("demo_ema_vfi_t.safetensors",),
}
"""By stage, the files that it ends in. Load EMA-VFI tells weights for any time by the _t."""


def streamingsvd(base: Base, cam: Mapping[str, Tensor]) -> Weights:
    """A whole StreamingSVD file; `cam` is keyed as `CamNetwork`. A CAM that the base brings along is left out.

    Raises `CheckpointError` where the parts make no file that the loader would take.
    """
    former = {key if key.startswith(CAM_PREFIX) else UNET_PREFIX + key for key in cam_weights(base.tensors)}
    tensors = {key: tensor for key, tensor in base.tensors.items() if key not in former}
    tensors.update({key if key.startswith(CAM_PREFIX) else UNET_PREFIX + key: tensor for key, tensor in cam.items()})
    detect_streamingsvd(shapes_of(tensors), "the joined file")
    split_file(tensors, "the joined file")
    return tensors


def streamingmodelscope(base: Base, unet: Mapping[str, Tensor], cam_and_apm: Mapping[str, Tensor]) -> Weights:
    """A whole StreamingModelscope file. Raises `CheckpointError` where the loader would."""
    host()  # for its torchvision, which diffusers' classes import
    tensors = {modelscope.UNET_PREFIX + key: tensor for key, tensor in unet.items()}
    tensors = {**frozen_parts(base), **tensors, **cam_and_apm}
    modelscope.detect_streamingmodelscope(shapes_of(tensors), "the joined file")
    refuse_unread(tensors, "the joined file")
    return tensors


def narrowed(tensors: Mapping[str, Tensor]) -> Weights:
    return {key: tensor.half() if tensor.is_floating_point() else tensor for key, tensor in tensors.items()}


def files(folder: Path, stage: str, base: Path | None = None) -> tuple[Weights, ...]:
    """What `FILES` names, from a training folder. `base`: the file that was trained on, if not the folder's own."""
    if stage == "cam":
        return (streamingsvd(read_base(folder, base, with_unet=True), read_stage(folder, "cam")),)
    if stage == "ms_cam":
        unet = read_stage(folder, "ms_unet")
        return streamingmodelscope(read_base(folder, base), unet, read_stage(folder, "ms_cam")), unet
    return (read_stage(folder, stage),)


def export(
    folder: Path, stage: str = "cam", base: Path | None = None, into: Path | None = None, name: str | None = None
) -> list[Path]:
    """Write the files of a stage `into` a folder, by default the training folder, and return them.

    `name`: another one than `FILES` has, for the first of them.
    """
    into = into or folder
    into.mkdir(parents=True, exist_ok=True)
    paths = [into / (name or FILES[stage][0]), *(into / other for other in FILES[stage][1:])]
    for path, tensors in zip(paths, files(folder, stage, base), strict=True):
        write_weights(path, narrowed(tensors))
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
