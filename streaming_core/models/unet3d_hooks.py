"""Places in the 3-D UNets at which a caller may see the features and hand on others.

The networks call every method at its place in each pass; as they stand, the methods change nothing. A host derives from
`Hooks` to run what its users attach to a model.

Blocks are counted along the way. Input block 0 is the first convolution, and every layer of the way down and every
strided convolution is one more, so that input block k makes skip k; the middle is a block; output block k takes the
k-th skip from the end.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from .attention import Attention
from .unet3d_attention import ContextAttention, KeysValues, SelfAttention

Side = Literal["input", "middle", "output"]


class Hooks:
    """Nothing is changed anywhere. One object serves one pass; features are `[batch * frames, channels, h, w]`."""

    def at(self, side: Side, number: int) -> None:
        """Called before each block: everything until the next call lies in this one."""

    def embedding(self, embedding: Tensor) -> Tensor:
        """The noise level of every frame, `[batch * frames, width]`."""
        return embedding

    def after_input(self, h: Tensor) -> Tensor:
        """What an input block made, before it becomes a skip."""
        return h

    def after_skip(self, h: Tensor) -> Tensor:
        """What goes into the next block; the skip stays as it is."""
        return h

    def after_middle(self, h: Tensor) -> Tensor:
        """What the middle made."""
        return h

    def before_output(self, h: Tensor, skip: Tensor) -> tuple[Tensor, Tensor]:
        """What an output block joins. Both must be of one height and width afterwards."""
        return h, skip

    def transformer(self, shape: tuple[int, ...]) -> None:
        """Called before each spatial transformer with the shape of the features that it gets."""

    def self_attention(self, layer: SelfAttention, x: Tensor, attention: Attention) -> Tensor:
        """The first attention of a spatial transformer; `x`, normed, and result `[batch * frames, pixels, width]`."""
        return layer.attend(x, attention)

    def between_attentions(self, x: Tensor) -> Tensor:
        """Between the two attentions of a spatial transformer."""
        return x

    def cross_attention(self, layer: ContextAttention, x: Tensor, memory: KeysValues, attention: Attention) -> Tensor:
        """The second attention of a spatial transformer; `x`, normed, and result as for the first."""
        return layer.attend(x, memory, attention)


NO_HOOKS = Hooks()
