"""Chunk sampler node for the host's own video models."""

from __future__ import annotations

from ..streaming_core.loop.remedies import Perturbation, PreviousGuidance
from .host.compat import io, schema
from .host.native.conditions import IMAGE_CONDITIONS, condition_kind
from .host.native.layout import latent_layout
from .host.native.sampler import AnyModelChunkSampler
from .types import CATEGORY, ChunkSampler


class AnyModelChunkSamplerNode(io.ComfyNode):
    """Wan, LTX-Video, HunyuanVideo, Cosmos, SVD and whatever else the host samples, as a chunk sampler."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="StreamingT2VAnyModelChunkSampler",
            display_name="Any Model Chunk Sampler",
            category=CATEGORY,
            description="Makes long videos with any video model that ComfyUI can sample: Wan, LTX-Video, "
            "HunyuanVideo, Cosmos, SVD. The end of each chunk is held as latents at the start of the next one, "
            "without decoding.",
            search_aliases=[
                "stream sampler any model",
                "wan",
                "ltx",
                "ltxv",
                "hunyuan",
                "cosmos",
                "svd",
                "long video",
                "extend video",
            ],
            inputs=[
                io.Model.Input("model", tooltip="Any video model, including LoRAs and other patches."),
                io.Vae.Input("vae", tooltip="VAE of the model."),
                io.Conditioning.Input(
                    "positive",
                    tooltip="Positive conditioning for every chunk, including values set by the model's own nodes "
                    "(e.g. frame rate). For SVD use the output of SVD_img2vid_Conditioning.",
                ),
                io.Conditioning.Input("negative", tooltip="Negative conditioning for every chunk."),
                io.Sampler.Input("sampler", tooltip="Any sampler; use your usual one for this model."),
                io.Sigmas.Input("sigmas", tooltip="Noise levels from a scheduler for this model, at full denoise."),
                io.Float.Input(
                    "cfg",
                    default=5.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    tooltip="CFG scale; use your usual value for this model. At 1.0 each step needs one model call "
                    "instead of two.",
                ),
                io.Float.Input(
                    "held_noise",
                    default=0.0,
                    min=0.0,
                    max=2.0,
                    step=0.01,
                    tooltip="Noise added to the held latents that the model sees, as a share of their size. 0 holds "
                    "them exactly; 0.05 to 0.2 makes the model trust them less, against drift (LVDM, trained with it, "
                    "uses 0.45). The saved video uses the clean latents. No extra cost.",
                ),
                io.Float.Input(
                    "previous_guidance",
                    default=0.0,
                    min=0.0,
                    max=5.0,
                    step=0.01,
                    tooltip="Guidance towards the previous chunk (LVDM). 0 is off; 0.05 to 0.2 makes a chunk follow "
                    "the previous one more closely. Each step needs one more model call: 50 % more time at a cfg "
                    "above 1.",
                ),
                io.Combo.Input(
                    "image_condition",
                    options=list(IMAGE_CONDITIONS),
                    default="anchor",
                    tooltip="For Wan and Hunyuan image-to-video models: the start of the image condition. anchor: the "
                    "anchor, then the held latents. tail: only the held latents (smoother transitions, weaker "
                    "identity).",
                ),
                io.Clip.Input("clip", optional=True, tooltip="Text encoder for the prompts of a Chunk Plan."),
                io.ClipVision.Input(
                    "clip_vision",
                    optional=True,
                    tooltip="Encodes the anchor for models trained with it: SVD, Wan 2.1 image-to-video, HunyuanVideo "
                    "1.5.",
                ),
            ],
            outputs=[
                ChunkSampler.Output(
                    display_name="chunk_sampler", tooltip="Connect to Stream Sampler, Start Video or Stream Chunk."
                )
            ],
        )

    @classmethod
    def execute(cls, held_noise, previous_guidance, **inputs):
        # A VAE or model that cannot work is refused here, not after the first chunk.
        latent_layout(inputs["model"], inputs["vae"])
        condition_kind(inputs["model"])
        return io.NodeOutput(
            AnyModelChunkSampler(
                held_noise=Perturbation(held_noise), previous_guidance=PreviousGuidance(previous_guidance), **inputs
            )
        )


NODES = (AnyModelChunkSamplerNode,)
