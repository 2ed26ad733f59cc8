"""The host and the pack inside one process; each test in a process of its own, because it works once per process."""

from __future__ import annotations

import os
import subprocess
import sys

import dev


def run_python(code: str) -> str:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(dev.ROOT), str(dev.SHIM)])}
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, env=env, cwd=dev.ROOT, capture_output=True, text=True, timeout=180)
    assert result.returncode == 0, result.stderr[-4000:]
    return result.stdout


def test_host_imports_on_the_cpu_with_folders_of_its_own():
    said = run_python(
        "import sys, tempfile\n"
        "from hosting.inprocess import import_host\n"
        "arguments = list(sys.argv)\n"
        "host = import_host()\n"
        "assert import_host() == host and sys.argv == arguments\n"
        "import folder_paths, comfy.model_management as mm, comfy.samplers, nodes\n"
        "assert nodes.__file__ == str(host / 'nodes.py'), nodes.__file__\n"
        "assert folder_paths.models_dir.startswith(tempfile.gettempdir()), folder_paths.models_dir\n"
        "print(mm.get_torch_device())\n"
    )
    assert said.strip().endswith("cpu")


def test_pack_shares_the_core_with_the_tests():
    run_python(
        "from hosting.inprocess import import_host, import_pack\n"
        "import_host()\n"
        "pack = import_pack()\n"
        "assert import_pack() is pack\n"
        "import streaming_core.errors\n"
        "import comfyui_streamingt2v.streaming_core.errors as inner\n"
        "assert inner is streaming_core.errors\n"
        "assert inner.__spec__.name == 'streaming_core.errors'\n"
        "assert pack.comfy_entrypoint\n"
        "from comfyui_streamingt2v.streaming_core.identity.describe import WEIGHTS\n"
        "from streaming_core.identity import describe\n"
        "assert callable(describe), 'a function gave way to the module of its name'\n"
    )


def test_host_missing_is_said_plainly(tmp_path, monkeypatch):
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    said = run_python(
        "from hosting.inprocess import HostMissing, import_host\n"
        "try:\n    import_host()\nexcept HostMissing as error:\n    print(error)\n"
    )
    assert "dev.py setup" in said
