"""Node that makes chunks with any of the host's own video models."""

from __future__ import annotations

from .host.compat import io, schema
from .host.native.conditions import IMAGE_CONDITIONS, condition_kind
from .host.native.sampler import AnyModelChunkSampler, latent_layout
from .types import CATEGORY, ChunkSampler


class AnyModelChunkSamplerNode(io.ComfyNode):
    """Wan, LTX-Video, HunyuanVideo, Cosmos, SVD and whatever else the host samples, as a chunk sampler."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="StreamingT2VAnyModelChunkSampler",
            display_name="Any Model Chunk Sampler",
            category=CATEGORY,
            description="Makes long videos with any video model ComfyUI can sample: Wan, LTX-Video, HunyuanVideo, "
            "Cosmos, SVD. The end of each chunk is held as latents at the beginning of the next, without decoding.",
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
                io.Model.Input("model", tooltip="Any video model, with whatever LoRA or patches it has."),
                io.Vae.Input("vae", tooltip="The VAE that belongs to the model."),
                io.Conditioning.Input(
                    "positive",
                    tooltip="Prompt of all chunks, with what the model's own nodes set beside it, say a rate. "
                    "For SVD that of SVD_img2vid_Conditioning.",
                ),
                io.Conditioning.Input("negative", tooltip="Negative prompt of all chunks."),
                io.Sampler.Input("sampler", tooltip="As in any other workflow with this model."),
                io.Sigmas.Input("sigmas", tooltip="Noise levels, from a scheduler of this model, at full denoise."),
                io.Float.Input(
                    "cfg",
                    default=5.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    tooltip="Guidance, as for this model elsewhere. 1 needs one forward per step instead of two.",
                ),
                io.Float.Input(
                    "held_noise",
                    default=0.0,
                    min=0.0,
                    max=2.0,
                    step=0.01,
                    tooltip="Noise on the held latents that the model sees, as a share of their size. 0: held exactly. "
                    "0.05 to 0.2 makes it trust them less, against drift; LVDM, trained for it, uses 0.45. The video "
                    "keeps the clean ones. Costs nothing.",
                ),
                io.Float.Input(
                    "previous_guidance",
                    default=0.0,
                    min=0.0,
                    max=5.0,
                    step=0.01,
                    tooltip="Guidance against the previous chunk (LVDM), 0: off. 0.05 to 0.2 makes a chunk follow the "
                    "one before more closely. One more forward per step: half as much time again.",
                ),
                io.Combo.Input(
                    "image_condition",
                    options=list(IMAGE_CONDITIONS),
                    default="anchor",
                    tooltip="For image-to-video models of Wan and Hunyuan: what they are told the clip begins with. "
                    "anchor: the anchor, then the held latents; tail: the held latents only, which joins smoother and "
                    "keeps looks less.",
                ),
                io.Clip.Input("clip", optional=True, tooltip="Text encoder, for the prompts of a Chunk Plan."),
                io.ClipVision.Input(
                    "clip_vision",
                    optional=True,
                    tooltip="Shows the anchor to models trained with it: SVD, Wan 2.1 image-to-video, HunyuanVideo "
                    "1.5.",
                ),
            ],
            outputs=[ChunkSampler.Output(display_name="chunk_sampler", tooltip="For Stream Sampler or Start Video.")],
        )

    @classmethod
    def execute(cls, **inputs):
        # A VAE or model that cannot work is refused here, not after the first chunk.
        latent_layout(inputs["model"], inputs["vae"])
        condition_kind(inputs["model"])
        return io.NodeOutput(AnyModelChunkSampler(**inputs))


NODES = (AnyModelChunkSamplerNode,)
