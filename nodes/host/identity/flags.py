"""The host's start flags that change results."""

from __future__ import annotations

import comfy.cli_args
from comfy.ldm.modules import attention

from ....streaming_core.identity import Plain
from .identities import identity_of

RESULT_FLAGS = (
    *("force_fp32", "force_fp16", "fp16_intermediates", "force_channels_last", "deterministic", "fast"),
    *("fp32_unet", "fp64_unet", "bf16_unet", "fp16_unet", "fp8_e4m3fn_unet", "fp8_e5m2_unet", "fp8_e8m0fnu_unet"),
    *("fp16_vae", "fp32_vae", "bf16_vae", "cpu_vae"),
    *("fp8_e4m3fn_text_enc", "fp8_e5m2_text_enc", "fp16_text_enc", "fp32_text_enc", "bf16_text_enc"),
    *("supports_fp8_compute", "enable_triton_backend", "disable_triton_backend"),
    *("use_split_cross_attention", "use_quad_cross_attention", "use_pytorch_cross_attention"),
    *("use_sage_attention", "use_flash_attention", "use_ck_attention", "disable_xformers"),
    *("force_upcast_attention", "dont_upcast_attention"),
)


def start_flags_identity() -> dict[str, Plain]:
    """Flags that change results and are set, by name; a new flag of a later host changes nothing while it is off.

    Flags that only manage memory, and the device, are left out. Where a pack replaced the host's attention for
    everything, that function is named, too.
    """
    found: dict[str, Plain] = {}
    for name in RESULT_FLAGS:
        value = getattr(comfy.cli_args.args, name, None)
        if value or (name == "fast" and value is not None and value != []):
            found[name] = identity_of(sorted(map(str, value)) if isinstance(value, (list, set, tuple)) else value)
    function = attention.optimized_attention
    if getattr(function, "__module__", None) != attention.__name__:
        found["attention"] = identity_of(function)
    return found
