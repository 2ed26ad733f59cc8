"""Exchanging the layers of a built network for those of an operations namespace."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from streaming_core.errors import SettingsError
from streaming_core.models.adopt import LAYERS, adopt


def _marked_layers() -> SimpleNamespace:
    """Layers that compute like torch's, count their calls and refuse their own initialization to be used."""
    calls: list[str] = []

    def marked(kind: type[nn.Module]) -> type[nn.Module]:
        def forward(self, *args, **kwargs):
            calls.append(kind.__name__)
            return kind.forward(self, *args, **kwargs)

        return type(kind.__name__, (kind,), {"forward": forward})

    return SimpleNamespace(calls=calls, **{kind.__name__: marked(kind) for kind in LAYERS})


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(7, 8, padding_idx=1)
        self.flat = nn.Sequential(
            nn.LayerNorm(8), nn.Linear(8, 6, bias=False), nn.Linear(6, 6), nn.LayerNorm(6, bias=False)
        )
        self.line = nn.Conv1d(6, 6, 3, padding=1, groups=2, padding_mode="reflect")
        self.unline = nn.ConvTranspose1d(6, 6, 4, stride=2, padding=1)
        self.plane = nn.ModuleList(
            [
                nn.Conv2d(6, 8, 3, stride=2, padding=(2, 1), dilation=1),
                nn.GroupNorm(4, 8, eps=1e-3),
                nn.ConvTranspose2d(8, 6, 3, stride=2, output_padding=1, padding=(2, 1)),
                nn.LayerNorm(4, elementwise_affine=False, eps=1e-2),
            ]
        )
        self.volume = nn.Conv3d(6, 6, (3, 1, 1), padding=(1, 0, 0), bias=False)
        self.again = self.alias = self.flat[2]

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        x = self.again(self.flat(self.words(words)))
        x = self.unline(self.line(x.transpose(1, 2)))
        x = x[:, :, None].expand(-1, -1, 6, -1)
        for layer in self.plane[:3]:
            x = layer(x)
        x = self.volume(x[:, :, None]).squeeze(2)
        return self.plane[3](x[..., :4])


def test_adopted_network_computes_the_same_with_the_given_layers():
    torch.manual_seed(0)
    net = Mixed().eval()
    words = torch.randint(0, 7, (2, 10))
    want, keys = net(words), {key: value.clone() for key, value in net.state_dict().items()}
    parameters = dict(net.named_parameters())
    operations = _marked_layers()

    assert adopt(net, operations) is net
    assert torch.equal(net(words), want)
    assert sorted(set(operations.calls)) == sorted(kind.__name__ for kind in LAYERS)
    assert list(net.state_dict()) == list(keys)
    assert dict(net.named_parameters()).keys() == parameters.keys()
    assert all(dict(net.named_parameters())[name] is parameter for name, parameter in parameters.items())
    assert net.again is net.alias is net.flat[2], "a layer used twice stays one layer"
    assert not any(layer.training for layer in net.modules())


def test_adopting_twice_changes_nothing():
    net, operations = Mixed(), _marked_layers()
    layers = dict(adopt(net, operations).named_modules())
    assert dict(adopt(net, operations).named_modules()) == layers


def test_meta_networks_stay_on_meta_until_loaded():
    weights = Mixed().state_dict()
    with torch.device("meta"):
        net = Mixed()
    adopt(net, _marked_layers())
    assert {parameter.device.type for parameter in net.parameters()} == {"meta"}
    net.load_state_dict(weights, assign=True)
    reference = Mixed()
    reference.load_state_dict(weights)
    words = torch.randint(0, 7, (1, 10))
    assert torch.equal(net.eval()(words), reference.eval()(words))


def test_parameters_outside_of_layers_are_refused():
    class Gate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.level = nn.Parameter(torch.zeros(3))

    with pytest.raises(SettingsError, match="Gate at 1 holds the parameters level"):
        adopt(nn.Sequential(nn.Linear(2, 2), Gate()), _marked_layers())


def test_layers_with_a_forward_of_their_own_are_not_mistaken_for_plain_ones():
    class Scaled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    class Renamed(nn.Linear):
        pass

    with pytest.raises(SettingsError, match="Scaled at 0 holds the parameters weight, bias"):
        adopt(nn.Sequential(Scaled(2, 2)), SimpleNamespace(Linear=_marked_layers().Linear))
    operations = _marked_layers()
    net = adopt(nn.Sequential(Renamed(2, 2)), operations)
    assert type(net[0]) is operations.Linear


def test_a_missing_counterpart_is_named():
    with pytest.raises(SettingsError, match=r"layer 0 is a Conv3d, which the given operations do not offer"):
        adopt(nn.Sequential(nn.Conv3d(2, 2, 1)), SimpleNamespace(Linear=nn.Linear))


@pytest.mark.parametrize("name", ["UNet3DConditionModel", "I2VGenXLUNet", "AutoencoderKL"])
def test_public_diffusers_classes_can_be_adopted_whole(name):
    diffusers = pytest.importorskip("diffusers")
    with torch.device("meta"):
        net = getattr(diffusers, name)()
    operations = _marked_layers()
    adopt(net, operations)
    plain = [path for path, layer in net.named_modules() if type(layer) in LAYERS]
    assert not plain and sum(1 for layer in net.modules() if hasattr(layer, "weight"))
