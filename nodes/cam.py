"""CAM for any sampler node; serves every family that has one."""

from __future__ import annotations

from ..streaming_core.frames import to_rgb
from .host.compat import io, schema
from .host.modelscope.cam import ModelscopeCam, with_modelscope_cam
from .host.svd.cam import with_cam
from .types import CATEGORY, StreamingCam


class CamConditioning(io.ComfyNode):
    """A model that continues given frames, for use with any sampler node."""

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="StreamingT2VCamConditioning",
            display_name="CAM Conditioning",
            category=CATEGORY,
            description="Makes the model continue given frames: its first frames repeat them, the rest continue the "
            "motion.",
            search_aliases=["continue video", "extend video", "short-term memory"],
            inputs=[
                io.Model.Input("model", tooltip="Video model of StreamingSVD or StreamingModelscope."),
                StreamingCam.Input("cam", tooltip="CAM from the same checkpoint."),
                io.Image.Input(
                    "control_frames",
                    tooltip="Last frames of the existing video, in the size of the latent (multiples of 64 pixels); "
                    "officially 7. They become the first frames of the output.",
                ),
            ],
            outputs=[io.Model.Output(display_name="model", tooltip="Connect to KSampler or SamplerCustomAdvanced.")],
        )

    @classmethod
    def execute(cls, model, cam, control_frames):
        attach = with_modelscope_cam if isinstance(cam.network, ModelscopeCam) else with_cam
        return io.NodeOutput(attach(model, cam, to_rgb(control_frames)))


NODES = (CamConditioning,)
