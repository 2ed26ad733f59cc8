"""What the model is conditioned on in one window of a video: conditions cut to its frames, or its own ones.

One function for every host, because they differ: the oldest leaves frame-wise conditions whole, newer ones let the
model have a say (docs/hosts.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from comfy.context_windows import ContextWindowABC
from comfy.model_base import BaseModel
from torch import Tensor

from ....streaming_core.errors import SettingsError
from ..encoders import Conditioning

WINDOW_CONDITIONS = "streamingt2v_window_conditions"
"""Key of a conditioning's options: a tuple of dicts, one per window, laid over the options of the whole video."""

# Conditions whose frames lie on an axis of their own, on hosts that do not let the model cut them.
FRAME_AXES = {"vace_context": 3, "audio_embed": 1}


class WindowCutter:
    """Cuts conditions of a video of `num_frames` latent frames, along `dim`, to those of `window`."""

    def __init__(self, window: ContextWindowABC, num_frames: int, dim: int, rank: int) -> None:
        self.window, self.num_frames, self.dim, self.rank = window, num_frames, dim, rank
        self.start, self.length = window.index_list[0], len(window.index_list)

    def axis_of(self, tensor: Tensor, name: str = "") -> int | None:
        """The axis of `tensor` that counts the video's frames, or None.

        Frame batches: the first. Videos: the latent's own for tensors of the latent's rank, the second for masks, which
        have no channels, the only one for lists of numbers. A tensor of another rank whose size happens to be the
        number of frames is not touched.
        """
        if name in FRAME_AXES:
            axis = FRAME_AXES[name]
        elif name == "mask" and self.dim:
            axis = self.dim - 1
        elif self.dim == 0 or tensor.ndim == 1:
            axis = 0
        elif tensor.ndim == self.rank:
            axis = self.dim
        else:
            return None
        return axis if axis < tensor.ndim and tensor.shape[axis] == self.num_frames else None

    def cut(self, tensor: Tensor, name: str = "") -> Tensor:
        axis = self.axis_of(tensor, name)
        return tensor if axis is None else tensor.narrow(axis, self.start, self.length)

    def cut_condition(self, name: str, value: Any, model: BaseModel, x: Tensor) -> Any:
        """One entry of `model_conds`: the model's own rule where the host knows one, else frame by frame."""
        if name == "num_video_frames":
            return value._copy_with(self.length)
        own_rule = getattr(model, "resize_cond_for_context_window", None)
        if own_rule is not None:
            cut = own_rule(name, value, self.window, x, x.device, retain_index_list=[])
            if cut is not None:
                return cut
        if isinstance(value, Tensor):
            return self.cut(value, name)
        if isinstance(getattr(value, "cond", None), Tensor):
            return value._copy_with(self.cut(value.cond, name))
        return value


def conditions_for_window(
    entries: Sequence[Mapping[str, Any]] | None,
    cutter: WindowCutter,
    number: int,
    count: int,
    model: BaseModel,
    x: Tensor,
) -> list[dict] | None:
    """Conditioning entries of the host for window `number` of `count`. `x` is the video's latent, never written to.

    Entries that carry `WINDOW_CONDITIONS` are encoded again for this window alone, as if it were a video of its own: an
    image condition applies to the window's first frame. Tensors stay where they are until the model is called.
    """
    if entries is None:
        return None
    return [_entry_for_window(entry, cutter, number, count, model, x) for entry in entries]


def _entry_for_window(
    entry: Mapping[str, Any], cutter: WindowCutter, number: int, count: int, model: BaseModel, x: Tensor
) -> dict[str, Any]:
    cut: dict[str, Any] = {}
    for key, value in entry.items():
        if key == WINDOW_CONDITIONS:
            continue
        if isinstance(value, Tensor):
            cut[key] = cutter.cut(value, key)
        elif isinstance(value, dict):
            cut[key] = {name: cutter.cut_condition(name, item, model, x) for name, item in value.items()}
        else:
            cut[key] = value
    per_window = entry.get(WINDOW_CONDITIONS)
    if per_window:
        options = per_window[window_share(number, count, len(per_window))]
        cut["model_conds"] = {**cut.get("model_conds", {}), **_encode(model, {**cut, **options}, cutter, x)}
    return cut


def window_share(number: int, count: int, given: int) -> int:
    """Which of `given` conditions window `number` of `count` gets: its own, or its share when there are fewer.

    Raises `SettingsError` when there are more conditions than windows, since some would never be seen.
    """
    if given > count:
        raise SettingsError(
            f"there are conditions for {given} windows, but this video has {count}: "
            "give as many as there are windows, or fewer to let each serve several in a row"
        )
    return number * given // count


def _encode(model: BaseModel, entry: Mapping[str, Any], cutter: WindowCutter, x: Tensor) -> dict[str, Any]:
    """What the model makes of `entry` for a video as long as the window."""
    part = x.narrow(cutter.dim, cutter.start, cutter.length)
    options = {key: value for key, value in entry.items() if key not in ("model_conds", WINDOW_CONDITIONS)}
    size = {"height": 8 * x.shape[-2], "width": 8 * x.shape[-1]}
    return model.extra_conds(**{**size, **options, "noise": part, "device": x.device})


def with_window_conditions(conditioning: Conditioning, windows: Sequence[Conditioning]) -> Conditioning:
    """`conditioning` that differs from window to window: `windows` holds one CONDITIONING per window, in order.

    Prompts and images come from the windows; areas, masks, time ranges and controls stay those of `conditioning`.
    """
    laid_over = []
    for number, window in enumerate(windows):
        if len(window) != 1:
            raise SettingsError(
                f"the conditioning of window {number} has {len(window)} parts: use one prompt per window, "
                "and combine or mask on the conditioning of the whole video"
            )
        tokens, options = window[0]
        forbidden = sorted({"control", "area", "mask", "start_percent", "end_percent", "hooks"} & options.keys())
        if forbidden:
            raise SettingsError(
                f"the conditioning of window {number} brings its own {', '.join(forbidden)}, "
                "which only the conditioning of the whole video may have"
            )
        laid_over.append({**options, **({"cross_attn": tokens} if tokens is not None else {})})
    if not laid_over:
        raise SettingsError("no window conditions were given: connect at least one")
    return [[tokens, {**options, WINDOW_CONDITIONS: tuple(laid_over)}] for tokens, options in conditioning]
