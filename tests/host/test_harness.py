"""The harness against the bare host: what tests see must be what a user sees."""

from __future__ import annotations

import pytest

from hosting.report import HostError
from hosting.server import HostServer


def noise_image(width: int = 64, frames: int = 1) -> dict:
    """A prompt of host nodes only: an empty image is blurred and saved."""
    return {
        "1": {"class_type": "EmptyImage", "inputs": {"width": width, "height": 64, "batch_size": frames, "color": 255}},
        "2": {
            "class_type": "ImageBlur",
            "inputs": {"image": ["1", 0], "blur_radius": 31, "sigma": 10.0},
        },
        "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "harness"}},
    }


def test_prompt_leaves_its_files_and_times(host_server):
    report = host_server.run(noise_image(frames=2)).check()
    assert [output.node for output in report.outputs] == ["3", "3"]
    assert all(output.path.is_file() for output in report.outputs)
    assert set(report.node_seconds) == {"1", "2", "3"}
    assert sum(report.node_seconds.values()) <= report.seconds


def test_second_prompt_takes_results_from_the_cache(host_server):
    host_server.run(noise_image(width=72)).check()
    assert {"1", "2"} <= set(host_server.run(noise_image(width=72)).check().cached)


def test_refused_prompt_names_the_node(host_server):
    report = host_server.run(noise_image(width=-1))
    assert report.status == "refused"
    assert "width" in report.messages["1"]
    with pytest.raises(HostError, match="refused"):
        report.check()


def test_dropped_output_is_not_a_success(host_server):
    prompt = noise_image()
    prompt["4"] = {"class_type": "SaveImage", "inputs": {"images": ["5", 0], "filename_prefix": "dropped"}}
    prompt["5"] = {"class_type": "EmptyImage", "inputs": {"width": -1, "height": 64, "batch_size": 1, "color": 0}}
    report = host_server.run(prompt)
    assert report.status == "partial"
    assert "5" in report.messages


def test_error_carries_the_message_of_the_node(host_server):
    broken = host_server.base / "models" / "vae" / "broken.safetensors"
    broken.parent.mkdir(exist_ok=True)
    broken.write_bytes(b"not a file of weights")
    prompt = {
        "1": {"class_type": "VAELoader", "inputs": {"vae_name": "broken.safetensors"}},
        "2": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
        "3": {"class_type": "VAEDecode", "inputs": {"samples": ["2", 0], "vae": ["1", 0]}},
        "4": {"class_type": "SaveImage", "inputs": {"images": ["3", 0], "filename_prefix": "broken"}},
    }
    report = host_server.run(prompt)
    assert report.status == "error"
    assert (report.error.node_id, report.error.node_type) == ("1", "VAELoader")
    assert "header" in report.error.message
    assert "load_vae" in report.error.traceback


def test_cancel_interrupts(host_server):
    prompt = noise_image(width=1024, frames=400)
    report = host_server.run(prompt, cancel_when=lambda report: report.started).check("interrupted")
    assert report.canceled_at < report.seconds


def test_peak_memory_is_reported(host_server):
    peak = host_server.rss_peak()
    assert peak is None or 100 * 2**20 < peak < 20 * 2**30


def test_host_that_cannot_start_says_why():
    with pytest.raises(HostError, match="unrecognized arguments: --no-such-flag"):
        HostServer(extra=["--no-such-flag"]).start()


def test_stop_ends_the_process_and_removes_the_folder():
    server = HostServer()
    with server:
        assert server.version
    assert not server.alive
    assert not server.base.exists()
