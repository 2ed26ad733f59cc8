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

from comfyui_streamingt2v.nodes import (  # noqa: E402
    dropletvideo,
    enhancer,
    interpolation,
    metrics,
    modelscope,
    streamingsvd,
)
from comfyui_streamingt2v.nodes.host.files import read_weights  # noqa: E402

WEIGHTS = {"conv_in.weight": torch.rand(4, 3), "mid.bias": torch.rand(4)}
LOADERS = [
    node
    for module in (streamingsvd, modelscope, dropletvideo, enhancer, interpolation, metrics)
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


@pytest.mark.parametrize("ending", ["ckpt", "pth", "safetensors"])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b'{"error": "Access to model is restricted"}', "is a text in JSON"),
        (b'{"metadata": {"total_size": 5}, "weight_map": {}}', "is an index of shards"),
        (b"Entry not found", 'is a text, not weights .*"Entry not found"'),
        (b"GGUF\x03\x00\x00\x00", "is a GGUF file"),
    ],
)
def test_answers_of_servers_are_named(tmp_path, ending, content, words):
    path = tmp_path / f"weights.{ending}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"weights.{ending} {words}"):
        read_weights(str(path))


@pytest.mark.parametrize("ending", ["ckpt", "safetensors"])
@pytest.mark.parametrize("share", [0.2, 0.9])
def test_cut_off_files_are_named(tmp_path, ending, share):
    path = tmp_path / f"weights.{ending}"
    (save_file if ending == "safetensors" else torch.save)(WEIGHTS, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CheckpointError, match=f"weights.{ending} is damaged or cut off"):
        read_weights(str(path))


@pytest.mark.parametrize("chosen", [1, 3])
def test_any_shard_stands_for_all_of_them(tmp_path, chosen):
    tensors = {f"layer.{number}": torch.full((2, 2), float(number)) for number in range(7)}
    for number in range(3):
        part = {key: value for index, (key, value) in enumerate(tensors.items()) if index % 3 == number}
        save_file(part, tmp_path / f"model-{number + 1:05d}-of-00003.safetensors")
    path = tmp_path / f"model-{chosen:05d}-of-00003.safetensors"
    read = read_weights(str(path))
    assert read.keys() == tensors.keys() and all(torch.equal(read[key], tensors[key]) for key in tensors)
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match=f"shard {chosen} of 3.*model-00002-of-00003.safetensors is missing"):
        read_weights(str(path))


def test_shards_and_pickles_under_a_wrong_name_are_named(tmp_path):
    save_file(WEIGHTS, tmp_path / "model-00001-of-00003.safetensors")
    with pytest.raises(CheckpointError, match="shard 1 of 3"):
        read_weights(str(tmp_path / "model-00001-of-00003.safetensors"))
    save_file(WEIGHTS, tmp_path / "model-00001-of-00001.safetensors")
    assert same(read_weights(str(tmp_path / "model-00001-of-00001.safetensors")))
    torch.save(WEIGHTS, tmp_path / "pickle.safetensors")
    with pytest.raises(CheckpointError, match=r"pickle.safetensors is a pickle .* not safetensors"):
        read_weights(str(tmp_path / "pickle.safetensors"))


@pytest.mark.parametrize(
    "content",
    [
        {"state_dict": WEIGHTS, "epoch": 3, "global_step": 7},
        {"model": WEIGHTS, "optimizer": {"state": {0: {"exp_avg": torch.rand(3)}}}},
        {"module": WEIGHTS},
        {"model": {"state_dict": WEIGHTS}, "ema": {key: -value for key, value in WEIGHTS.items()}},
        {"ema": {key: -value for key, value in WEIGHTS.items()}, "step": torch.tensor(3), "net": WEIGHTS},
        {"args": {"lr": torch.tensor(0.1)}, "my_weights": WEIGHTS},
        {"state_dict_ema": WEIGHTS},
    ],
)
def test_the_weights_inside_of_a_pickle_are_found(tmp_path, content):
    torch.save(content, tmp_path / "weights.pth")
    assert same(read_weights(str(tmp_path / "weights.pth")))


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, {"a": {"b": "c"}}, torch.rand(3)])
def test_pickles_without_weights_are_named(tmp_path, content):
    torch.save(content, tmp_path / "nothing.pth")
    with pytest.raises(CheckpointError, match=r"nothing.pth does not contain a state dict"):
        read_weights(str(tmp_path / "nothing.pth"))


@pytest.mark.parametrize("node", LOADERS, ids=lambda node: node.__name__)
def test_a_name_that_comes_by_link_lets_the_link_decide(node):
    """The host asks with None then; an error would make it load the file again for every prompt."""
    names = [name for name in inspect.signature(node.fingerprint_inputs).parameters if name not in ("_", "kwargs")]
    assert node.fingerprint_inputs(**dict.fromkeys(names)) == node.fingerprint_inputs(**dict.fromkeys(names))
