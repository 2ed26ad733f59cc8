"""The weight-free flow against known motion, and RAFT-large from files that are right, wrong and damaged."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from benchmarks.metrics_videos import texture, view
from streaming_core.errors import CheckpointError
from streaming_core.metrics.classical_flow import box, lucas_kanade, window_sum
from streaming_core.metrics.flow import (
    RAFT_FILE,
    build_raft,
    classical_flow,
    empty_raft,
    load_raft,
    read_weights,
    small_size,
)
from streaming_core.models.registry import IncompleteCheckpointError, WrongCheckpointError

HEIGHT, WIDTH = 128, 192


def moved(move) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A frame, the same after `move` (x, y from the center to where they go), and the flow between them."""
    edge = 60
    image = texture(HEIGHT + 2 * edge, WIDTH + 2 * edge, seed=4)
    y, x = torch.meshgrid(torch.arange(HEIGHT) - HEIGHT / 2, torch.arange(WIDTH) - WIDTH / 2, indexing="ij")
    (tx, ty), (sx, sy) = move(x, y, 1), move(x, y, -1)
    columns, rows = sx + WIDTH / 2 + edge + 0.5, sy + HEIGHT / 2 + edge + 0.5
    place = torch.stack((columns / image.shape[2], rows / image.shape[1]), -1)[None] * 2 - 1
    left = view(image, edge, edge, HEIGHT, WIDTH)[None]
    right = F.grid_sample(image[None], place, mode="bicubic", align_corners=False)
    return left, right, torch.stack((tx - x, ty - y))[None]


def shift(dx, dy):
    return lambda x, y, way: (x + way * dx, y + way * dy)


def zoom(factor):
    return lambda x, y, way: (x * factor**way, y * factor**way)


def turn(degrees):
    def move(x, y, way):
        angle = math.radians(degrees) * way
        return x * math.cos(angle) - y * math.sin(angle), x * math.sin(angle) + y * math.cos(angle)

    return move


@pytest.mark.parametrize(
    "move",
    [shift(0.4, 0), shift(2.5, -1.5), shift(9, 6), shift(-25, 10), zoom(1.05), zoom(0.9), turn(4)],
    ids=["0.4 px", "3 px", "11 px", "27 px", "zoom in", "zoom out", "turn"],
)
def test_flow_of_known_motion(move):
    left, right, want = moved(move)
    error = (lucas_kanade(left, right) - want).square().sum(1).sqrt()[0]
    inner = error[16:-16, 32:-32]
    assert inner.median() < 0.25
    assert inner.mean() < 0.5


def test_still_and_empty_frames_have_no_flow():
    left = texture(64, 64, seed=1)[None]
    assert lucas_kanade(left, left).abs().max() < 1e-3
    assert lucas_kanade(torch.zeros(1, 3, 64, 64), torch.zeros(1, 3, 64, 64)).abs().max() == 0
    assert lucas_kanade(torch.zeros(1, 3, 64, 64), torch.ones(1, 3, 64, 64)).abs().max() < 1e-3


def test_a_change_of_light_is_not_motion():
    left = texture(96, 96, seed=2)[None]
    assert lucas_kanade(left, left + 0.08).square().sum(1).sqrt().mean() < 0.1


@pytest.mark.parametrize("size", [(8, 8), (24, 32), (33, 65), (256, 456)])
def test_every_size_has_a_flow(size):
    left = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    flow = lucas_kanade(left, left.flip(0))
    assert flow.shape == (2, 2, *size) and flow.isfinite().all()


@pytest.mark.parametrize(
    ("size", "want"), [((720, 1280), (256, 456)), ((1280, 720), (456, 256)), ((96, 160), (96, 160)), ((5, 90), (8, 88))]
)
def test_small_size(size, want):
    assert small_size(*size) == want


def test_fallback_says_that_it_is_not_raft():
    estimator = classical_flow()
    assert not estimator.is_raft and "fallback" in estimator.name
    frames = estimator.working_frames(torch.rand(3, 3, 300, 400))
    assert frames.shape == (3, 3, 256, 344) and 0 <= frames.min() and 200 < frames.max() <= 255


@given(st.integers(1, 20), st.integers(0, 12))
def test_window_sums(size, more):
    values = torch.arange(size + more, dtype=torch.float64).square()
    assert torch.equal(window_sum(values, size, 0), values.unfold(0, size, 1).sum(-1))


def test_box_is_the_mean_of_the_window():
    images = torch.rand(2, 3, 12, 15, generator=torch.Generator().manual_seed(0))
    want = F.avg_pool2d(F.pad(images, (2, 2, 2, 2), mode="replicate"), 5, 1)
    assert torch.allclose(box(images, 5), want, atol=1e-6)


@pytest.fixture(scope="module")
def raft_weights() -> dict[str, torch.Tensor]:
    network = empty_raft()
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(0, 0.02, generator=generator)
    return network.state_dict()


def test_raft_from_both_kinds_of_file(raft_weights, tmp_path):
    torch.save(raft_weights, tmp_path / RAFT_FILE)
    save_file({key: value.clone() for key, value in raft_weights.items()}, tmp_path / "raft.safetensors")
    frames = torch.rand(2, 3, 128, 128) * 255
    flows = []
    for name in (RAFT_FILE, "raft.safetensors"):
        estimator = load_raft(tmp_path / name)
        assert estimator.is_raft and estimator.pairs_per_call == 1
        assert estimator.working_frames(torch.rand(1, 3, 50, 60)).shape == (1, 3, 720, 720)
        with torch.inference_mode():
            flows.append(estimator.estimate(frames[:1], frames[1:]))
    assert flows[0].shape == (1, 2, 128, 128)
    assert torch.equal(*flows)
    with torch.inference_mode():
        network = build_raft(raft_weights, "test")
        assert torch.equal(flows[0], network(frames[:1] / 127.5 - 1, frames[1:] / 127.5 - 1)[-1])


def test_raft_refuses_other_networks(raft_weights):
    with pytest.raises(WrongCheckpointError, match="no feature_encoder.*among its 1 keys"):
        build_raft({"conv.weight": torch.zeros(1)}, "other.pth")
    original = {f"module.{part}.x": torch.zeros(1) for part in ("fnet", "cnet")}
    with pytest.raises(WrongCheckpointError, match="original RAFT release"):
        build_raft(original, "raft-things.pth")
    from torchvision.models.optical_flow import raft_small

    with pytest.raises(WrongCheckpointError, match="RAFT-small"):
        build_raft(raft_small(weights=None).state_dict(), "small.pth")
    with pytest.raises(IncompleteCheckpointError, match="1 missing"):
        build_raft({k: v for k, v in raft_weights.items() if k != "mask_predictor.conv.bias"}, "cut.pth")


def test_unreadable_weights_say_what_to_do(tmp_path):
    with pytest.raises(CheckpointError, match="download https://"):
        read_weights(tmp_path / "absent.pth")
    (tmp_path / "broken.pth").write_bytes(b"not weights")
    with pytest.raises(CheckpointError, match="download it again"):
        read_weights(tmp_path / "broken.pth")
    (tmp_path / "broken.safetensors").write_bytes(b"not weights")
    with pytest.raises(CheckpointError, match="download it again"):
        read_weights(tmp_path / "broken.safetensors")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match="does not contain a state dict"):
        read_weights(tmp_path / "list.pth")


def test_pickles_run_no_code(tmp_path):
    class Harmful:
        def __reduce__(self):
            return (tmp_path.joinpath("ran").touch, ())

    torch.save({"x": Harmful()}, tmp_path / "harmful.pth")
    with pytest.raises(CheckpointError):
        read_weights(tmp_path / "harmful.pth")
    assert not (tmp_path / "ran").exists()
