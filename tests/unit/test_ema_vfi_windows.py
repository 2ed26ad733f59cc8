"""The window attention of EMA-VFI against the same block written step by step as the reference describes it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from streaming_core.models.ema_vfi.attention import MotionBlock
from streaming_core.models.ema_vfi.windows import window_layout

WINDOW, SHIFT = 7, 3
CHANNELS, MOTION, HEADS = 12, 8, 2


def block(shifted: bool) -> MotionBlock:
    made = MotionBlock(
        CHANNELS, MOTION, HEADS, 24, WINDOW, shifted, operations=torch.nn, dtype=None, device=None
    ).requires_grad_(False)
    generator = torch.Generator().manual_seed(5)
    for parameter in made.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.4)
    return made


def split(x: Tensor) -> Tensor:
    """`[B, H, W, C]` -> `[windows, B, 49, C]`, windows in reading order."""
    rows = [x[:, top : top + WINDOW, left : left + WINDOW].flatten(1, 2)
            for top in range(0, x.shape[1], WINDOW) for left in range(0, x.shape[2], WINDOW)]  # fmt: skip
    return torch.stack(rows)


def merge(windows: Tensor, height: int, width: int) -> Tensor:
    out = windows.new_zeros(windows.shape[1], height, width, windows.shape[-1])
    places = [(top, left) for top in range(0, height, WINDOW) for left in range(0, width, WINDOW)]
    for (top, left), window in zip(places, windows, strict=True):
        out[:, top : top + WINDOW, left : left + WINDOW] = window.unflatten(1, (WINDOW, WINDOW))
    return out


def axis_labels(length: int, edges: list[int]) -> Tensor:
    labels = torch.zeros(length)
    for edge in edges:
        labels[edge:] += 1
    return labels


def different(rows: Tensor, columns: Tensor) -> Tensor:
    """Which slots of each window carry different (row, column) labels: `[windows, 49, 49]`."""
    labels = split(torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1)[None])[:, 0]
    return (labels[:, :, None] != labels[:, None]).any(-1)


def step_by_step(net: MotionBlock, first: Tensor, second: Tensor, shifted: bool) -> tuple[Tensor, Tensor]:
    """Both frames `[B, h, w, C]` -> features and motion of both, stacked on the batch; window by window."""
    x = torch.cat((first, second))
    batch, height, width = first.shape[:3]
    down, across = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    coordinates = torch.stack((across, down), dim=-1)[None]
    down, across = (-height) % WINDOW, (-width) % WINDOW
    top, left = down // 2, across // 2
    pad = (0, 0, left, across - left, top, down - top)
    x, coordinates = functional.pad(x, pad), functional.pad(coordinates, pad)
    rows, columns = x.shape[1:3]
    hidden = torch.zeros(rows // WINDOW * (columns // WINDOW), WINDOW**2, WINDOW**2, dtype=torch.bool)
    if down or across:
        hidden |= different(
            axis_labels(rows, [top, top + height] if down else []),
            axis_labels(columns, [left, left + width] if across else []),
        )
    if shifted:
        x, coordinates = x.roll((-SHIFT, -SHIFT), (1, 2)), coordinates.roll((-SHIFT, -SHIFT), (1, 2))
        hidden |= different(
            axis_labels(rows, [rows - WINDOW, rows - SHIFT]), axis_labels(columns, [columns - WINDOW, columns - SHIFT])
        )
    tokens = net.norm1(split(x))
    embedded = net.attn.cor_embed(split(coordinates))
    width_of_head, width_of_motion = CHANNELS // HEADS, MOTION // HEADS
    features, motions = torch.zeros_like(tokens), tokens.new_zeros(*tokens.shape[:3], MOTION)
    for window in range(len(tokens)):
        for item in range(2 * batch):
            other = (item + batch) % (2 * batch)
            queries = net.attn.q(tokens[window, item])
            keys, values = net.attn.kv(tokens[window, other]).split(CHANNELS, dim=-1)
            updates, moves = [], []
            for head in range(HEADS):
                own = slice(head * width_of_head, (head + 1) * width_of_head)
                logits = queries[:, own] @ keys[:, own].T * width_of_head**-0.5 + hidden[window] * -100.0
                weights = logits.softmax(-1)
                updates.append(weights @ values[:, own])
                embedding = embedded[window, 0][:, head * width_of_motion : (head + 1) * width_of_motion]
                moves.append(weights @ embedding - embedding)
            features[window, item] = tokens[window, item] + net.attn.proj(torch.cat(updates, -1))
            motions[window, item] = net.attn.motion_proj(torch.cat(moves, -1))
    features, motions = merge(features, rows, columns), merge(motions, rows, columns)
    if shifted:
        features, motions = features.roll((SHIFT, SHIFT), (1, 2)), motions.roll((SHIFT, SHIFT), (1, 2))
    inside = slice(top, top + height), slice(left, left + width)
    features, motions = features[:, inside[0], inside[1]], motions[:, inside[0], inside[1]]
    hidden_layer = net.mlp.fc1(net.norm2(features)).movedim(-1, 1)
    hidden_layer = functional.gelu(net.mlp.dwconv.dwconv(hidden_layer)).movedim(1, -1)
    return features + net.mlp.fc2(hidden_layer), motions


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("size", [(7, 7), (14, 7), (6, 7), (7, 9), (9, 14), (8, 5), (1, 1), (13, 20)])
def test_block_is_the_described_one(size, shifted):
    generator = torch.Generator().manual_seed(sum(size))
    first, second = torch.randn(2, 2, *size, CHANNELS, generator=generator)
    net = block(shifted)
    want, want_motion = step_by_step(net, first, second, shifted)
    tokens = torch.stack((first, second)).flatten(2, 3)
    got, motion = net(tokens, size, with_motion=True)
    torch.testing.assert_close(got.flatten(0, 1).unflatten(1, size), want, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(motion.flatten(0, 1).unflatten(1, size), want_motion, atol=2e-5, rtol=1e-5)
    without, nothing = net(tokens, size, with_motion=False)
    torch.testing.assert_close(without, got, atol=1e-6, rtol=1e-6)
    assert nothing is None


def test_layouts_are_kept_by_full_geometry():
    window_layout.cache_clear()
    arguments = (WINDOW, False, torch.device("cpu"), torch.float32)
    wide, tall = window_layout(8, 12, *arguments), window_layout(12, 8, *arguments)
    assert wide.mask.shape == tall.mask.shape  # the same padded area
    assert not torch.equal(wide.mask, tall.mask)
    assert window_layout(8, 12, *arguments) is wide
    with torch.inference_mode():
        assert not window_layout(9, 12, *arguments).mask.is_inference()
