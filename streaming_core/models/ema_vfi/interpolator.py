"""EMA-VFI as an interpolation model: RGB frames of any size, any time, with the members hosts call.

The contract of `INTERP_MODEL` (reference: comfyui-host, section 17.2): `get_dtype`, `memory_used_forward`,
`extract_features`, `forward`, `forward_multi_timestep`.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...errors import FrameError, SettingsError
from ..registry import load_strict
from .config import MULTIPLE_PX
from .detect import detect_tensors
from .features import FrameFeatures, PairFeatures
from .halving import by_halving, dyadic_times
from .layers import resize
from .network import EmaVfi, enlarge

Tta = Literal["off", "fast", "full"]
FLOW_SCALES = (1.0, 0.5, 0.25)
PAIR_KEY = "ema_vfi_pair"
ACTIVATION_BYTES, FEATURE_BYTES = 2600, 800
"""Per pixel, float32, `ours`: one time of one pair at its peak, and what is kept of a pair (docs/benchmarks.md)."""


@dataclass(frozen=True)
class EmaVfiSettings:
    """How to run the network (reference: ema-vfi, sections 2 and 6).

    any_time: the weights were trained for every time (`ours_t`); otherwise only for the middle (`ours`), and other
    times are reached by halving. tta: test-time augmentation, the mean with the result on both frames rotated by 180
    degrees; "fast" runs both in one batch where that is faster, "full" one after the other in half the memory, with
    the same result. flow_scale: 1, 1/2 or 1/4; flow of large frames is found on smaller ones. pad_multiple: frames are
    padded to this multiple (16 as StreamingSVD does, 32 as the authors' demos do).
    """

    any_time: bool = False
    tta: Tta = "off"
    flow_scale: float = 1.0
    pad_multiple: int = MULTIPLE_PX

    def __post_init__(self) -> None:
        if self.tta not in ("off", "fast", "full"):
            raise SettingsError(f"test-time augmentation is off, fast or full, not {self.tta!r}")
        if self.flow_scale not in FLOW_SCALES:
            raise SettingsError(f"flow can be found at scale 1, 0.5 or 0.25, not {self.flow_scale}")
        if self.pad_multiple < MULTIPLE_PX or self.pad_multiple % MULTIPLE_PX:
            raise SettingsError(f"frames must be padded to a multiple of {MULTIPLE_PX}, got {self.pad_multiple}")

    @property
    def multiple_px(self) -> int:
        """Padded sizes are multiples of this, so that the shrunk frames still are multiples of 16."""
        return max(self.pad_multiple, int(MULTIPLE_PX / self.flow_scale))


@dataclass(frozen=True)
class View:
    """One way to look at a frame (upright, rotated, or both in one batch), at full and at flow size."""

    full: FrameFeatures
    small: FrameFeatures


@dataclass(frozen=True)
class Frame:
    """All that is computed once per frame: `image` `[1, 3, H, W]` RGB as it came, and its views."""

    image: Tensor
    views: tuple[View, ...]


@dataclass
class Lazy:
    """An image `[1, 3, H, W]` whose features are computed only when further frames are made from it."""

    image: Tensor
    frame: Frame | None = None


@dataclass(frozen=True)
class PairView:
    """Features of two frames; `small` is where the flow is found."""

    full: PairFeatures
    small: PairFeatures


def padding(height: int, width: int, multiple: int) -> tuple[int, int, int, int]:
    """(left, right, top, bottom) up to the next multiples, the smaller half first (reference: ema-vfi, section 2)."""
    down, across = (-height) % multiple, (-width) % multiple
    return across // 2, across - across // 2, down // 2, down - down // 2


class EmaVfiInterpolator(nn.Module):
    """The network with its settings.

    Frames are `[B, 3, H, W]` **RGB**, 0..1, of any size; so are results, float32.
    """

    pad_align = 1  # padding happens here, the official way

    def __init__(self, network: EmaVfi, settings: EmaVfiSettings | None = None):
        super().__init__()
        self.network = network
        self.settings = settings or EmaVfiSettings()

    def get_dtype(self) -> torch.dtype:
        return self.network.unet.conv.get_parameter("weight").dtype

    def memory_used_forward(self, shape: Sequence[int], dtype: torch.dtype) -> int:
        """Bytes of activations for one time between frames of an IMAGE batch of `shape` (B, H, W, C)."""
        multiple = self.settings.multiple_px
        pixels = (shape[1] + (-shape[1]) % multiple) * (shape[2] + (-shape[2]) % multiple)
        views = 1 if self.settings.tta == "off" else 2
        at_once = 2 if self.settings.tta == "fast" else 1
        per_pixel = (ACTIVATION_BYTES * at_once + FEATURE_BYTES * views) * self.network.config.channels[0] / 32
        return int(pixels * per_pixel * dtype.itemsize / 4)

    def extract_features(self, img: Tensor) -> Frame:
        """What one frame `[1, 3, H, W]` shows; belongs to no pair and can be used for both of its pairs."""
        if img.ndim != 4 or img.shape[:2] != (1, 3):
            raise FrameError(f"one frame [1, 3, H, W] is wanted, got shape {tuple(img.shape)}")
        height, width = img.shape[-2:]
        left, right, top, bottom = padding(height, width, self.settings.multiple_px)
        image = functional.pad(img.flip(1), (left, right, top, bottom), mode="replicate")  # the network wants BGR
        images = (image,) if self.settings.tta == "off" else (image, image.flip(2, 3))
        if self.settings.tta == "fast" and img.device.type != "cpu":  # two at once is slower on a CPU
            images = (torch.cat(images),)
        return Frame(img, tuple(self._view(one) for one in images))

    def _view(self, image: Tensor) -> View:
        full = self.network.frame(image)
        scale = self.settings.flow_scale
        return View(full, full if scale == 1 else self.network.frame(resize(image, scale)))

    def forward(
        self, img0: Tensor, img1: Tensor, timestep: Tensor | float = 0.5, cache: MutableMapping[str, Any] | None = None
    ) -> Tensor:
        """Frames between `img0` and `img1` `[B, 3, H, W]` at `timestep` (`[B, 1, H, W]` filled with it, or a number).

        cache: may hold `img0` and `img1`, results of `extract_features` for one pair of which the B items are copies.
        """
        if isinstance(timestep, Tensor):
            times = timestep.reshape(len(timestep), -1)[:, 0].float().tolist()
        else:
            times = [float(timestep)] * len(img0)
        if cache and "img0" in cache:
            return self.forward_multi_timestep(img0[:1], img1[:1], times, cache)
        pairs = zip(img0.split(1), img1.split(1), times, strict=True)
        return torch.cat([self.forward_multi_timestep(first, second, [time]) for first, second, time in pairs])

    def forward_multi_timestep(
        self, img0: Tensor, img1: Tensor, ts: Sequence[float], cache: MutableMapping[str, Any] | None = None
    ) -> Tensor:
        """Frames `[len(ts), 3, H, W]` between one pair `[1, 3, H, W]` at the times `ts`; see `forward` for `cache`."""
        cache = {} if cache is None else cache
        first = cache["img0"] if "img0" in cache else self.extract_features(img0)
        second = cache["img1"] if "img1" in cache else self.extract_features(img1)
        if self.settings.any_time:
            return self._between(first, second, ts, cache)
        frames = by_halving(Lazy(img0, first), Lazy(img1, second), dyadic_times(ts), partial(self._middle, cache=cache))
        return torch.cat([frame.image.float() for frame in frames])

    def _middle(self, low: Lazy, high: Lazy, cache: MutableMapping[str, Any]) -> Lazy:
        first, second = self._seen(low), self._seen(high)
        return Lazy(self._between(first, second, [0.5], cache).to(low.image.dtype))

    def _seen(self, end: Lazy) -> Frame:
        if end.frame is None:
            end.frame = self.extract_features(end.image)
        return end.frame

    def _between(self, first: Frame, second: Frame, ts: Sequence[float], cache: MutableMapping[str, Any]) -> Tensor:
        pairs = self._pair(first, second, cache)
        looks = [look for pair in pairs for look in self._looks(pair, ts)]
        mean = looks[0] if len(looks) == 1 else (looks[0] + looks[1].flip(2, 3)) / 2
        height, width = first.image.shape[-2:]
        left, _, top, _ = padding(height, width, self.settings.multiple_px)
        return mean[:, :, top : top + height, left : left + width].flip(1)

    def _pair(self, first: Frame, second: Frame, cache: MutableMapping[str, Any]) -> list[PairView]:
        """Features of the pair per view; kept in `cache` for further times between the same two frames."""
        known = cache.get(PAIR_KEY)
        if known is not None and known[0] is first and known[1] is second:
            return known[2]
        views = [self._pair_view(*both) for both in zip(first.views, second.views, strict=True)]
        cache[PAIR_KEY] = (first, second, views)
        return views

    def _pair_view(self, first: View, second: View) -> PairView:
        if first.small is first.full:
            pair = self.network.pair(first.full, second.full)
            return PairView(pair, pair)
        small = self.network.pair(first.small, second.small)
        return PairView(self.network.pair(first.full, second.full, with_motion=False), small)

    def _looks(self, pair: PairView, ts: Sequence[float]) -> list[Tensor]:
        """Images `[len(ts), 3, H, W]` per direction of view that `pair` holds in its batch."""
        first = pair.full.images[0]
        looks = len(first)
        if looks == 1 and first.device.type != "cpu":  # times in one batch are slower on a CPU, too
            return [self._images(pair, list(ts))]
        return list(torch.stack([self._images(pair, [time] * looks) for time in ts], dim=1))

    def _images(self, pair: PairView, ts: list[float]) -> Tensor:
        times = torch.tensor(ts, dtype=torch.float32, device=pair.full.images[0].device)
        flow = self.network.flows(pair.small, times)[-1]
        if pair.small is not pair.full:
            flow = enlarge(flow, pair.full.images, 1 / self.settings.flow_scale)
        return self.network.image(pair.full, flow)


def build(
    tensors: Mapping[str, Tensor],
    settings: EmaVfiSettings | None = None,
    *,
    operations: Any = nn,
    dtype: torch.dtype | None = None,
    device: Any = None,
) -> EmaVfiInterpolator:
    """An interpolation model from the content of a weight file (`ours.pkl` and its variants, or safetensors copies).

    Raises `WrongCheckpointError` or `IncompleteCheckpointError` where the file is something else or not whole.
    """
    config, weights = detect_tensors(tensors)
    network = EmaVfi(config, operations=operations, dtype=dtype, device=device)
    load_strict(network, weights, "EMA-VFI")
    network.eval().requires_grad_(False)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's types do not know the word
    return EmaVfiInterpolator(network, settings)
