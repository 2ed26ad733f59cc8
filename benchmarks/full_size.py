"""The full-size StreamingSVD with random weights: seconds per step and chunk, and peak memory of the accelerator.

    python -m benchmarks.full_size [--width 1024 --height 576 --frames 25 --steps 30] [--record]

Weights are made in float16 straight on the device; numbers mean time and memory only. Without an accelerator it says so
and stops.
"""

from __future__ import annotations

import argparse
import sys
import time

COMMAND = "python -m benchmarks.full_size --record"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--height", type=int, default=576)
    parser.add_argument("--frames", type=int, default=25)
    parser.add_argument("--steps", type=int, default=30, help="steps per chunk that the estimate is for (default 30)")
    parser.add_argument("--record", action="store_true", help="write the result to docs/benchmarks.md")
    args = parser.parse_args(argv)

    import torch

    from benchmarks.record import record, table

    if not torch.cuda.is_available():
        print("no GPU here: the full-size network is not run")
        if args.record:
            rows = [["host SVD, one guided step", *["not run"] * 2], ["with CAM, one guided step", *["not run"] * 2]]
            text = table(["", "time", "peak memory"], rows)
            about = "Random weights, 1024x576, 25 frames, float16. **Not run yet: no GPU was available.**"
            record("full_size", COMMAND, f"## Full size on a GPU\n\n{about}\n\n{text}")
        return 0
    from benchmarks.cam_overhead import fill
    from hosting.inprocess import import_host, import_pack
    from streaming_core.models.streamingsvd.network import CamNetwork
    from streaming_core.models.streamingsvd.shapes import OFFICIAL

    import_host(cpu=False)
    import_pack()
    import comfy.model_management as mm
    import comfy.samplers
    from comfyui_streamingt2v.nodes.host import cam as shared_cam
    from comfyui_streamingt2v.nodes.host import patchers
    from comfyui_streamingt2v.nodes.host import vae as host_vae
    from comfyui_streamingt2v.nodes.host.svd import build, cam
    from comfyui_streamingt2v.nodes.host.svd import sampler as svd

    device, cpu = mm.get_torch_device(), torch.device("cpu")
    model = build.empty_video_unet(OFFICIAL.cam.unet, torch.float16, 1_600_000_000, device=device)
    network = shared_cam.empty_cam(CamNetwork, OFFICIAL.cam, torch.float16, 700_000_000, device=device)
    for seed, module in enumerate((model.diffusion_model, network)):
        for parameter in module.parameters():
            generator = torch.Generator(device).manual_seed(seed)
            scale = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.02
            parameter.data.normal_(0, scale, generator=generator)
    model = patchers.managed(model, device, cpu)
    streaming_cam = shared_cam.StreamingCam(patchers.managed(network, device, cpu))
    vae_network = build.SplitAutoencoder(OFFICIAL.image_encoder, OFFICIAL.first_stage)
    fill(vae_network, 2)
    vae = build.build_vae(vae_network.state_dict(), OFFICIAL.image_encoder, OFFICIAL.first_stage)

    latent = (args.frames, 4, args.height // 8, args.width // 8)
    extra = {"fps": 7, "motion_bucket_id": 127, "augmentation_level": 0.02}
    extra["concat_latent_image"] = torch.randn(1, *latent[1:])
    conds = ([[torch.randn(1, 1, 1024), extra]], [[torch.zeros(1, 1, 1024), extra]])
    euler = comfy.samplers.sampler_object("euler")
    control = torch.rand(7, args.height, args.width, 3)

    def timed(work) -> tuple[float, float]:
        """Seconds and peak GiB."""
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        began = time.monotonic()
        work()
        torch.cuda.synchronize()
        return time.monotonic() - began, torch.cuda.max_memory_allocated() / 2**30

    def steps(which, count):
        sigmas = torch.linspace(700, 1, count + 1)
        settings = svd.SamplingSettings(euler, sigmas, 3.0, 1.5)
        return lambda: svd.sample_clip(which, settings, conds, torch.randn(latent), 0, None)

    with torch.inference_mode():
        pixel_seconds, _ = timed(lambda: shared_cam.encode_control_frames(streaming_cam, control))
        guided = cam.with_cam(model, streaming_cam, control)
        rows, seconds = [], {}
        for name, which in (("host SVD", model), ("with CAM", guided)):
            steps(which, 1)()
            taken, peak = timed(steps(which, 4))
            seconds[name] = taken / 4
            rows.append([f"{name}, one guided step", f"{taken / 4:.2f} s", f"{peak:.1f} GiB"])
        decode = lambda group: host_vae.decode_clip(vae, group)  # noqa: E731 - a one-line stand-in for the sampler's own
        taken, peak = timed(lambda: svd.decode_all(torch.randn(latent), 7, "overlapping", decode))
        chunk = args.steps * seconds["with CAM"] + pixel_seconds + taken
        rows.append(["decode of 18 new frames", f"{taken:.1f} s", f"{peak:.1f} GiB"])
        rows.append([f"one chunk of {args.steps} steps (computed)", f"{chunk:.1f} s", ""])
    text = table(["", "time", "peak memory"], rows)
    print(text)
    ratio = seconds["with CAM"] / seconds["host SVD"]
    print(f"CAM costs {ratio - 1:.1%} of a step")
    if args.record:
        size = f"{args.width}x{args.height}, {args.frames} frames, float16"
        record(
            "full_size",
            COMMAND,
            f"## Full size on a GPU\n\nRandom weights, {size}. CAM costs {ratio - 1:.1%} of a step.\n\n{text}",
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
