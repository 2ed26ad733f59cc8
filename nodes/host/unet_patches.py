"""What users attach to a MODEL, run by our networks as the host's own UNet runs it; what they cannot run is refused.

Other nodes leave functions in `transformer_options`: `patches` by kind, `patches_replace` by kind and block. The kinds
below have the same places, arguments and block numbers as in the host's UNet. A kind that is not among them would be
without effect, so a model that carries one is not sampled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor

from ...streaming_core.errors import SettingsError
from ...streaming_core.models.attention import Attention, MultiHeadAttention
from ...streaming_core.models.unet3d import UNet3D
from ...streaming_core.models.unet3d_attention import ContextAttention, KeysValues, SelfAttention
from ...streaming_core.models.unet3d_hooks import Hooks, Side

PATCHES = frozenset(
    {
        "emb_patch",
        "input_block_patch",
        "input_block_patch_after_skip",
        "middle_block_after_patch",
        "output_block_patch",
        "attn1_patch",
        "attn1_output_patch",
        "middle_patch",
        "attn2_output_patch",
    }
)
"""Kinds of `patches` that `PatchHooks` runs. Not `attn2_patch`: it changes a prompt before it becomes keys and values,
which happens once per run here; and no kind that belongs to layers of the host's own networks."""
REPLACES = frozenset({"attn1", "attn2"})
"""Kinds of `patches_replace`."""
OTHER_NETWORKS = ("rope_options",)
"""Further entries of `transformer_options` that host nodes set for networks of another form."""


def _name(patch: Any) -> str:
    """The node or class that a patch comes from, as its code is named; patches may be functions, objects or pairs."""
    function = patch[-1] if isinstance(patch, tuple) else patch
    function = getattr(function, "func", function)
    first = getattr(function, "__qualname__", type(function).__qualname__).split(".")[0]
    return getattr(function, "__module__", first).split(".")[-1] if first.startswith("<") else first


def _names(patches: Iterable[Any]) -> str:
    return " and ".join(dict.fromkeys(_name(patch) for patch in patches))


def check_patches(transformer_options: Mapping[str, Any], network: UNet3D, called: str) -> None:
    """Raise `SettingsError` for patches that `network`, which users know as `called`, has no place for."""
    out = "connect the model from before that node"
    for kind, patches in transformer_options.get("patches", {}).items():
        if patches and kind not in PATCHES:
            raise SettingsError(f"{_names(patches)} patches {kind!r} of the model, which {called} does not have; {out}")
    for kind, patches in transformer_options.get("patches_replace", {}).items():
        if not patches or (kind in REPLACES and {place[:2] for place in patches} & network.transformers):
            continue
        places = ", ".join(" ".join(str(part) for part in place) for place in list(patches)[:3])
        raise SettingsError(
            f"{_names(patches.values())} replaces {kind!r} in blocks that {called} does not have ({places}); {out}"
        )
    for kind in OTHER_NETWORKS:
        if transformer_options.get(kind):
            raise SettingsError(f"a node before sets {kind!r} of the model, which {called} does not have; {out}")


def refuse_patches(transformer_options: Mapping[str, Any], called: str) -> None:
    """Raise `SettingsError` for any patch, for networks whose blocks no node knows."""
    for kind in ("patches", "patches_replace"):
        for name, patches in transformer_options.get(kind, {}).items():
            if patches:
                raise SettingsError(
                    f"a node before patches {name!r} of the model, which {called} does not have; connect the model "
                    "from before that node"
                )


class PatchHooks(Hooks):
    """Runs the patches of one pass; `options` is the `transformer_options` of this pass alone, and is written to.

    `model_channels`: the width of the network's first block. `context`: the prompt, where the network receives it.
    """

    def __init__(
        self, options: dict[str, Any], model_channels: int, x: Tensor, timesteps: Tensor, context: Tensor | None
    ) -> None:
        self.options = options
        self.patches: Mapping[str, list[Callable]] = options.get("patches", {})
        self.replaces: Mapping[str, Mapping[tuple, Callable]] = options.get("patches_replace", {})
        self.model_channels = model_channels
        self.inputs = {"x": x, "timesteps": timesteps, "context": context, "y": None}
        self.level: Tensor | None = None
        self.extra: dict[str, Any] = {}
        options["original_shape"] = list(x.shape)
        options["transformer_index"] = 0

    def _of(self, kind: str) -> Iterable[Callable]:
        return self.patches.get(kind, ())

    def _through(self, kind: str, value: Tensor, options: dict[str, Any]) -> Tensor:
        for patch in self._of(kind):
            value = patch(value, options)
        return value

    def at(self, side: Side, number: int) -> None:
        self.options["block"] = (side, number)

    def embedding(self, embedding: Tensor) -> Tensor:
        for patch in self._of("emb_patch"):
            embedding = patch(embedding, self.model_channels, self.options)
        self.level = embedding
        return embedding

    def after_input(self, h: Tensor) -> Tensor:
        return self._through("input_block_patch", h, self.options)

    def after_skip(self, h: Tensor) -> Tensor:
        return self._through("input_block_patch_after_skip", h, self.options)

    def after_middle(self, h: Tensor) -> Tensor:
        for patch in self._of("middle_block_after_patch"):
            h = patch({**self.inputs, "h": h, "emb": self.level, "transformer_options": self.options})["h"]
        return h

    def before_output(self, h: Tensor, skip: Tensor) -> tuple[Tensor, Tensor]:
        for patch in self._of("output_block_patch"):
            h, skip = patch(h, skip, self.options)
        return h, skip

    def transformer(self, shape: tuple[int, ...]) -> None:
        self.options["activations_shape"] = list(shape)
        self.options["block_index"] = 0

    def _describe(self, layer: MultiHeadAttention) -> dict[str, Any]:
        """What attention patches are given besides tensors."""
        options = {name: value for name, value in self.options.items() if name not in ("patches", "patches_replace")}
        heads = {"n_heads": layer.heads, "dim_head": layer.inner_width // layer.heads, "attn_precision": None}
        return {**options, **heads}

    def _replacement(self, kind: str) -> Callable | None:
        """What takes the place of an attention in this block: set for its transformer, or else for the whole block."""
        block, by_place = self.options["block"], self.replaces.get(kind, {})
        return by_place.get((*block, self.options["block_index"]), by_place.get(block))

    def self_attention(self, layer: SelfAttention, x: Tensor, attention: Attention) -> Tensor:
        patches, replacement = list(self._of("attn1_patch")), self._replacement("attn1")
        self.extra = extra = self._describe(layer)
        if not patches and replacement is None:
            return self._through("attn1_output_patch", layer.attend(x, attention), extra)
        queries = keys = values = x
        for patch in patches:
            queries, keys, values = patch(queries, keys, values, extra)
        projected = layer.to_q(queries), layer.to_k(keys), layer.to_v(values)
        done = attention(*projected, layer.heads) if replacement is None else replacement(*projected, extra)
        return self._through("attn1_output_patch", layer.to_out(done), extra)

    def between_attentions(self, x: Tensor) -> Tensor:
        return self._through("middle_patch", x, self.extra)

    def cross_attention(self, layer: ContextAttention, x: Tensor, memory: KeysValues, attention: Attention) -> Tensor:
        replacement, extra = self._replacement("attn2"), self._describe(layer)
        self.options["transformer_index"] += 1  # of the next one: this was the last attention
        if replacement is None:
            return self._through("attn2_output_patch", layer.attend(x, memory, attention), extra)
        # The frames are the batch for patches, so every frame gets the keys and values of its video.
        keys, values = (part.repeat_interleave(x.shape[0] // part.shape[0], dim=0) for part in memory)
        done = replacement(layer.to_q(x), keys, values, extra)
        return self._through("attn2_output_patch", layer.to_out(done), extra)
