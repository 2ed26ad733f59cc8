"""How much one call of the transformer computes (reference: dropletvideo, sections 4 and 8)."""

from __future__ import annotations

from .config import DropletConfig


def forward_flops(config: DropletConfig, latents: int, height: int, width: int, text_tokens: int) -> int:
    """Floating-point operations of one call for one video: matrix products, attention included, are nearly all.

    Args:
        config: of the transformer.
        latents: of the video, in time.
        height: of a latent; a multiple of the patch, as `width`.
        width: of a latent.
        text_tokens: of the prompt, padding included.
    """
    patch = config.patch**2
    video = latents * height * width // patch
    tokens = video + text_tokens
    products = 4 * tokens * config.width**2  # queries, keys, values, and what leaves the attention
    products += 2 * tokens * config.width * config.feed_forward_width
    products += 2 * tokens**2 * config.width  # queries with keys, and their weights with the values
    products += 2 * config.embedding_width * 6 * config.width  # the two modulations
    products *= config.layers
    products += video * config.in_channels * patch * config.width + text_tokens * config.text_width * config.width
    products += video * config.width * config.out_channels * patch
    products += config.embedding_width * 2 * config.width
    products += 2 * (config.width + config.embedding_width) * config.embedding_width
    return 2 * products  # a multiplication and an addition each
