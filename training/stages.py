"""Every stage that `python -m training` knows: what it makes, from what, and its defaults.

Tasks import torch and the host, so each is imported by the function that makes it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .layout import Weights
    from .task import Clips, Task

VARIETIES = ("narrow", "paced", "slow", "calm", "wide")


@dataclass(frozen=True)
class Stage:
    """One row of the table. `make` is None for stages that train nothing, which `encode` instead; `batch` too.

    `encode` gets a function that tells whether to stop, and returns what it wrote, in words, or None if it stopped.
    `takes`: the options --base, --start, --clips and --stride that are for it. `overlap`: how many frames of a
    clip are control frames. `pool_videos`: how many are encoded before training.
    """

    name: str
    about: str
    make: Callable[[argparse.Namespace], Task] | None
    minutes: float | None = None
    batch: int | None = None
    frames: int = 8
    overlap: int | None = None
    pool_videos: int | None = None
    takes: tuple[str, ...] = ("base", "start")
    encode: Callable[[argparse.Namespace, Callable[[], bool]], str | None] | None = None


def _everywhere(args: argparse.Namespace) -> dict[str, Any]:
    import torch

    return {"device": torch.device(args.device), "seed": args.seed}


def _start(args: argparse.Namespace) -> Weights | None:
    from .layout import stage_weights

    return stage_weights(args.start, args.stage) if args.start else None


def _clips(args: argparse.Namespace) -> Clips:
    from .pool import read_pool
    from .task import Clips

    pool = read_pool(args.out, args.size, args.videos)
    return Clips(args.size, args.videos, pool, args.batch, args.frames)


def _vae(args: argparse.Namespace) -> Task:
    from .vae import VaeTask

    return VaeTask(args.size, args.videos, args.batch, **_everywhere(args))


def _pool(args: argparse.Namespace, stopped: Callable[[], bool]) -> str | None:
    import torch

    from .configs import DEMO_SVD
    from .diffusion import Encoder
    from .layout import read_base
    from .pool import FILE, make_pool, write_pool

    base, device = read_base(args.out, args.base), torch.device(args.device)
    encoder = Encoder(base.vae(device), base.clip_vision(), DEMO_SVD.cam.unet.vector_width, device)
    pool = make_pool(encoder, args.size, args.videos, args.pool_videos, args.frames, stopped)
    if pool is None:
        return None
    write_pool(pool, args.out, args.size, args.videos)
    return f"{args.out / FILE}: {args.pool_videos} videos of {args.frames} frames"


def _lvdm_pool(args: argparse.Namespace, stopped: Callable[[], bool]) -> str | None:
    from .lvdm_pool import FILE, make_pool, trained_autoencoder, write_pool

    pool = make_pool(trained_autoencoder(args.out), args.size, args.videos, args.pool_videos, args.frames, stopped)
    if pool is None:
        return None
    write_pool(pool, args.out, args.size, args.videos)
    return f"{args.out / FILE}: {args.pool_videos} videos of {args.frames} frames"


def _vfi(args: argparse.Namespace) -> Task:
    from .vfi import VfiTask

    return VfiTask(args.size, args.videos, args.batch, **_everywhere(args))


def _unet(args: argparse.Namespace) -> Task:
    from .layout import read_base
    from .svd_unet import SvdUnetTask

    clips, base = _clips(args), read_base(args.out, args.base)
    return SvdUnetTask(base, clips, start=_start(args), **_everywhere(args))


def _cam(args: argparse.Namespace) -> Task:
    from .footage import FolderSource
    from .layout import read_base
    from .svd_cam import SvdCamTask

    base = read_base(args.out, args.base, with_unet=True)
    if args.clips:
        source = FolderSource.open(args.clips, args.size, 2 * args.frames - args.overlap)
    else:
        source = _clips(args).source
    lengths = {"batch": args.batch, "frames": args.frames, "overlap": args.overlap, "rounds": args.rounds}
    return SvdCamTask(base, source, args.size, start=_start(args), **lengths, **_everywhere(args))


def _ms_unet(args: argparse.Namespace) -> Task:
    from .layout import read_base
    from .modelscope_unet import ModelscopeUnetTask

    base = read_base(args.out, args.base)
    return ModelscopeUnetTask(base, _clips(args), start=_start(args), **_everywhere(args))


def _ms_cam(args: argparse.Namespace) -> Task:
    from .layout import read_base, read_stage
    from .modelscope_cam import ModelscopeCamTask

    base, clips, unet = read_base(args.out, args.base), _clips(args), read_stage(args.out, "ms_unet")
    return ModelscopeCamTask(base, unet, clips, args.overlap, start=_start(args), **_everywhere(args))


def _lvdm_ae(args: argparse.Namespace) -> Task:
    from .lvdm_ae import LvdmAeTask

    return LvdmAeTask(args.size, args.videos, args.batch, args.frames, **_everywhere(args))


def _lvdm_unet(args: argparse.Namespace) -> Task:
    from .lvdm_pool import read_pool, trained_autoencoder
    from .lvdm_unet import LvdmUnetTask

    pool, autoencoder = read_pool(args.out, args.size, args.videos), trained_autoencoder(args.out)
    clips = {"size": args.size, "variety": args.videos, "batch": args.batch, "stride": args.stride}
    return LvdmUnetTask(args.stage, pool, autoencoder, start=_start(args), **clips, **_everywhere(args))


def _enhancer(args: argparse.Namespace) -> Task:
    from .enhancer import EnhancerTask
    from .layout import read_base, read_stage

    clips, unet = _clips(args), _start(args) if args.start else read_stage(args.out, "ms_unet")
    return EnhancerTask(read_base(args.out, args.base), unet, clips, **_everywhere(args))


def _droplet_vae(args: argparse.Namespace) -> Task:
    from .droplet_vae import DropletVaeTask

    return DropletVaeTask(args.size, args.videos, args.batch, args.frames, **_everywhere(args))


def _droplet(args: argparse.Namespace) -> Task:
    from .configs import DEMO_DROPLET_VAE
    from .droplet import DropletTask
    from .droplet_pool import read_or_make_clips
    from .droplet_vae import build_vae
    from .layout import read_stage

    where = _everywhere(args)
    vae = build_vae(read_stage(args.out, "droplet_vae"), DEMO_DROPLET_VAE, where["device"])
    about = {"size": args.size, "variety": args.videos, "count": args.pool_videos, "frames": args.frames}
    clips = read_or_make_clips(args.out, vae, about, where["device"])
    return DropletTask(vae, clips, args.size, args.videos, args.batch, start=_start(args), **where)


STAGES = {
    stage.name: stage
    for stage in (
        Stage("vae", "the VAE of all families", _vae, minutes=20, batch=6, frames=1, takes=()),
        Stage(
            "pool", "no training: videos encoded by the VAE, for later stages", None,
            frames=33, pool_videos=224, takes=("base",), encode=_pool,
        ),
        Stage("unet", "SVD's video UNet, after pool", _unet, minutes=75, batch=3),
        Stage(
            "cam", "StreamingSVD's CAM, after unet, or for a video model of your own", _cam,
            minutes=30, batch=3, overlap=3, takes=("base", "start", "clips"),
        ),
        Stage("ms_unet", "StreamingModelscope's base text-to-video UNet, after pool", _ms_unet, minutes=35, batch=3),
        Stage("ms_cam", "StreamingModelscope's CAM and APM, after ms_unet", _ms_cam, minutes=18, batch=3, overlap=4),
        Stage("enhancer", "a small I2VGen-XL, after ms_unet", _enhancer, minutes=25, batch=3),
        Stage("droplet_vae", "DropletVideo's VAE, on its own", _droplet_vae, minutes=10, batch=3, frames=17, takes=()),
        Stage(
            "droplet", "DropletVideo's transformer, after droplet_vae", _droplet,
            minutes=45, batch=16, frames=17, pool_videos=3200, takes=("start",),
        ),
        Stage("lvdm_ae", "LVDM's 3D autoencoder", _lvdm_ae, minutes=12, batch=4, takes=()),
        Stage(
            "lvdm_pool", "no training: videos encoded by lvdm_ae, for later stages", None,
            frames=64, pool_videos=400, takes=(), encode=_lvdm_pool,
        ),
        Stage(
            "lvdm_short", "LVDM's model of short videos, after lvdm_pool", _lvdm_unet,
            minutes=12, batch=8, takes=("start", "stride"),
        ),
        Stage(
            "lvdm_pred", "LVDM's prediction model, after lvdm_pool", _lvdm_unet,
            minutes=20, batch=8, takes=("start", "stride"),
        ),
        Stage(
            "lvdm_interp", "LVDM's interpolation model, after lvdm_pool", _lvdm_unet,
            minutes=15, batch=8, takes=("start", "stride"),
        ),
        Stage("vfi", "EMA-VFI frame interpolation, on its own", _vfi, minutes=15, batch=4, frames=3, takes=()),
    )
}  # fmt: skip


def defaults(field: str) -> str:
    """One default of every stage that has it, for the help."""
    found = {stage.name: getattr(stage, field) for stage in STAGES.values()}
    return ", ".join(f"{value:g} ({name})" for name, value in found.items() if value is not None)
