"""Weight files as people have them: under other endings, inside wrappers, or not weights at all."""

from __future__ import annotations

import inspect

import pytest
import torch
from safetensors.torch import save_file

from hosting.inprocess import import_host, import_pack
from streaming_core.errors import CheckpointError

import_host()
import_pack()

from comfyui_streamingt2v.nodes import enhancer, interpolation, metrics, modelscope, streamingsvd  # noqa: E402
from comfyui_streamingt2v.nodes.host.files import read_weights  # noqa: E402

WEIGHTS = {"conv_in.weight": torch.rand(4, 3), "mid.bias": torch.rand(4)}
LOADERS = [
    node
    for module in (streamingsvd, modelscope, enhancer, interpolation, metrics)
    for node in module.NODES
    if "fingerprint_inputs" in vars(node)
]


def same(found: dict) -> bool:
    return set(found) == set(WEIGHTS) and all(torch.equal(found[key], WEIGHTS[key]) for key in WEIGHTS)


@pytest.mark.parametrize("ending", ["ckpt", "pth", "pkl", "pt", "bin", "safetensors"])
def test_safetensors_are_read_under_any_ending(tmp_path, ending):
    save_file(WEIGHTS, tmp_path / f"weights.{ending}")
    assert same(read_weights(str(tmp_path / f"weights.{ending}")))


@pytest.mark.parametrize("ending", ["ckpt", "safetensors"])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12884901888\n", "is a Git LFS pointer"),
        (b"<!DOCTYPE html><html><body>Sign in</body></html>", "is a web page"),
        (b"\n<HTML>404</HTML>", "is a web page"),
    ],
)
def test_what_is_no_weights_is_named(tmp_path, ending, content, words):
    path = tmp_path / f"weights.{ending}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=words):
        read_weights(str(path))


@pytest.mark.parametrize("wrap", ["module.{}", "_orig_mod.{}", "module._orig_mod.{}"])
def test_wrappers_leave_the_names_of_the_network(tmp_path, wrap):
    torch.save({"state_dict": {wrap.format(key): value for key, value in WEIGHTS.items()}}, tmp_path / "weights.pth")
    assert same(read_weights(str(tmp_path / "weights.pth")))


def test_a_part_named_module_stays(tmp_path):
    weights = {"module.weight": torch.rand(2), "other.weight": torch.rand(2)}
    save_file(weights, tmp_path / "weights.safetensors")
    assert set(read_weights(str(tmp_path / "weights.safetensors"))) == set(weights)


@pytest.mark.parametrize("node", LOADERS, ids=lambda node: node.__name__)
def test_a_name_that_comes_by_link_lets_the_link_decide(node):
    """The host asks with None then; an error would make it load the file again for every prompt."""
    names = [name for name in inspect.signature(node.fingerprint_inputs).parameters if name not in ("_", "kwargs")]
    assert node.fingerprint_inputs(**dict.fromkeys(names)) == node.fingerprint_inputs(**dict.fromkeys(names))
