"""The network's own names in a file: what programs put in front of them, and what they save beside them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from .registry import Architecture, Shapes, shapes_of

_TRANSPARENT = re.compile(r"\b(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""What torch.compile, FSDP and activation checkpointing put between the names, wherever they wrap a part."""
_PARALLEL = re.compile(r"(^|(?<=\.))module\.")
_WRAPPERS = frozenset(
    "module modules state_dict model_state_dict model diffusion_model unet unet3d net network params weights generator "
    "inner_model".split()
)
_AVERAGES = frozenset(
    "ema model_ema ema_model ema_unet unet_ema params_ema state_dict_ema ema_state_dict shadow averaged_model".split()
)
BESIDE = tuple(
    (re.compile(pattern), reason)
    for pattern, reason in (
        (rf"(.*\.)?({'|'.join(sorted(_AVERAGES))})\.", "moving averages of the weights"),
        (
            r"(optimizers?|optimizer_states?|optim|lr_schedulers?|scheduler|(grad_)?scaler|callbacks|loops)(\.|$)",
            "what a training program keeps",
        ),
        (r"(.*\.)?(loss|lpips|discriminator|perceptual_loss)\.", "what a training program keeps"),
        (r"(.*\.)?(epoch|global_step|step|iteration|num_updates|decay)$", "what a training program keeps"),
        (
            r"(.*\.)?((sqrt_(one_minus_|recip_|recipm1_)?|log_one_minus_)?alphas_cumprod(_prev|_next)?|alphas|betas|"
            r"posterior_(variance|log_variance_clipped|mean_coef[12])|lvlb_weights|logvar|(log_)?sigmas|timesteps|"
            r"num_timesteps|scale_factor|v_pred|ztsnr|edm_\w+)$",
            "a noise schedule, which the pack makes itself",
        ),
        (r"(.*\.)?position_ids$", "a constant that old files carry"),
    )
)
"""What lies beside the weights of a network in files of training programs and savers: pattern of the key, reason."""


@dataclass(frozen=True)
class NamedWeights:
    """Weights under the names of their network.

    `architecture` is the first of those asked for that the file has. `ignored`: keys that are no weights of it, by
    reason.
    """

    architecture: Architecture
    tensors: dict[str, Tensor]
    ignored: Mapping[str, Sequence[str]]

    def has(self, word: str) -> bool:
        """Whether a key that was ignored ends with `word`."""
        return any(key.rpartition(".")[2] == word for keys in self.ignored.values() for key in keys)


def beside(key: str) -> str | None:
    """Why a file may hold `key` beside the weights of a network, or None when it is a weight."""
    return next((reason for pattern, reason in BESIDE if pattern.match(key)), None)


def named_weights(
    tensors: Mapping[str, Tensor], architectures: Sequence[Architecture], source: str, wanted: Architecture
) -> NamedWeights:
    """`tensors` of the file `source` under the names of the first of `architectures` that it has.

    Names may be inside of wrappers at any depth (`module.`, `_orig_mod.`, `model.diffusion_model.`, ...), also where
    only parts are wrapped. Raises `WrongCheckpointError`, worded by `wanted`, when none is there.
    """
    for names in readings(tensors):
        for architecture in architectures:
            prefix = _prefix_of(names, architecture)
            if prefix is not None:
                return _take(tensors, names, prefix, architecture)
    raise wanted.refusal(_without_leading(shapes_of(tensors)), source)


def _without_leading(shapes: Shapes) -> Shapes:
    """Shapes under names without the wrapper of all, as refusals speak of them."""
    if not all(_PARALLEL.match(key) for key in shapes):
        return shapes
    return {_PARALLEL.sub("", key, count=1): shape for key, shape in shapes.items()}


def readings(keys: Iterable[str]) -> Iterator[dict[str, str]]:
    """The names that keys may mean (key -> name), without wrapped parts first; none lets two keys be one."""
    keys = list(keys)
    for form in (lambda key: _PARALLEL.sub("", _TRANSPARENT.sub("", key)), lambda key: key):
        names = {key: form(key) for key in keys}
        if len(set(names.values())) == len(keys):
            yield names


def _prefix_of(names: Mapping[str, str], architecture: Architecture) -> str | None:
    """What stands before the names of the network: the shortest wrapper under which all required keys are.

    Wrappers of moving averages come last. A word that is no known wrapper counts when all weights are under it.
    """
    first = next(iter(architecture.required))
    found = {
        name[: match.start()]
        for name in names.values()
        for match in re.finditer(rf"(^|(?<=\.)){re.escape(first)}", name)
    }
    for prefix in sorted(found, key=lambda prefix: (bool(_words(prefix) & _AVERAGES), len(prefix))):
        below = [name[len(prefix) :] for name in names.values() if name.startswith(prefix)]
        if _wraps(prefix, names.values()) and not architecture.missing(below):
            return prefix
    return None


def _words(prefix: str) -> set[str]:
    return set(prefix.split(".")[:-1])


def _wraps(prefix: str, names: Iterable[str]) -> bool:
    return _words(prefix) <= _WRAPPERS | _AVERAGES or all(name.startswith(prefix) or beside(name) for name in names)


def _take(
    tensors: Mapping[str, Tensor], names: Mapping[str, str], prefix: str, architecture: Architecture
) -> NamedWeights:
    own: dict[str, Tensor] = {}
    ignored: dict[str, list[str]] = {}
    for key, name in names.items():
        inside = name.startswith(prefix)
        reason = beside(name[len(prefix) :] if inside else name)
        if reason is None and not inside:
            reason = f"not a part of {architecture.name}"
        if reason is None:
            own[name[len(prefix) :]] = tensors[key]
        else:
            ignored.setdefault(reason, []).append(key)
    return NamedWeights(architecture, own, ignored)
