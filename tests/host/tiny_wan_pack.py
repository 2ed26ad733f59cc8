"""A node pack for test servers: a tiny Wan with stand-ins for its text encoder and VAE, whose real files are huge.

Put into a server's custom_nodes as it is; TINY_MODELS names the file with the models.
"""

import hashlib
import importlib.util
import os
import sys

import torch


def tiny_models():
    name = "streamingt2v_test_tiny_models"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, os.environ["TINY_MODELS"])
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[name]


class Text:
    """Tokens that depend on the prompt and nothing else."""

    def tokenize(self, text):
        return text

    def encode_from_tokens_scheduled(self, tokens):
        seed = int.from_bytes(hashlib.sha256(tokens.encode()).digest()[:4], "little")
        return tiny_models().WAN.conditioning(seed)


class Pixels:
    """Frames from latents as Wan's VAE makes them in number and size, and back; colors are latent channels."""

    latent_channels = 16
    upscale_ratio = (lambda a: max(0, a * 4 - 3), 8, 8)
    downscale_ratio = (lambda a: max(0, (a + 3) // 4), 8, 8)

    def __init__(self):
        import comfy.model_patcher

        module = torch.nn.Linear(1, 1)
        tiny_models().randomize(module)
        self.patcher = comfy.model_patcher.ModelPatcher(module, torch.device("cpu"), torch.device("cpu"))

    def temporal_compression_decode(self):
        return 4

    def spacial_compression_decode(self):
        return 8

    def spacial_compression_encode(self):
        return 8

    def encode(self, images):
        small = torch.nn.functional.avg_pool2d(images.movedim(-1, 1), 8)
        latents = torch.cat([small[:1], *(part.mean(0, keepdim=True) for part in small[1:].split(4))])
        return (latents.movedim(0, 1) * 2 - 1).repeat(6, 1, 1, 1)[None, :16]

    def decode(self, samples):
        colors = samples[:, :3].sigmoid().repeat_interleave(8, -1).repeat_interleave(8, -2)
        frames = torch.cat([colors[:, :, :1], colors[:, :, 1:].repeat_interleave(4, 2)], 2)
        return frames.movedim(1, -1)

    def decode_tiled(self, samples, **_tiles):
        return self.decode(samples)


class TinyWan:
    CATEGORY, FUNCTION, RETURN_TYPES = "tests", "load", ("MODEL", "CLIP", "VAE")

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}

    def load(self):
        # Weights made here must stay usable outside inference mode, as those of a file would.
        with torch.inference_mode(False):
            return tiny_models().WAN.make(), Text(), Pixels()


NODE_CLASS_MAPPINGS = {"StreamingT2VTestTinyWan": TinyWan}
