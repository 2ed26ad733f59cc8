"""What users get: the archive of the registry, unpacked into a host that has nothing but its own packages."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import dev
from hosting.server import HostServer
from tests.node_forms import PATH as FORMS

WHAT_USERS_NEED = {"__init__.py", "LICENSE", "README.md", "pyproject.toml", "requirements.txt"}
ONLY_FOR_DEVELOPERS = {"tests", "benchmarks", "dev.py", "requirements-dev.txt", ".ci", "training"}


def comfy_cli(folder: Path, *arguments: str) -> str:
    """Output of comfy-cli; it asks nothing and reports nothing home."""
    script = Path(sys.executable).with_name("comfy")
    if not script.exists():
        pytest.skip("comfy-cli is not in this environment; requirements-dev.txt names it")
    home = folder.parent / "home"
    home.mkdir(exist_ok=True)
    command = [script, "--skip-prompt", "--no-enable-telemetry", *arguments]
    env = {**os.environ, "HOME": str(home), "DO_NOT_TRACK": "1", "NO_COLOR": "1"}
    result = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout + result.stderr


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """What git knows of this tree, as a repository of its own: the archive holds tracked files only."""
    folder = tmp_path_factory.mktemp("registry") / "ComfyUI-StreamingT2V"
    git = ["git", "-c", "user.name=test", "-c", "user.email=test@localhost", "-c", "safe.directory=*"]
    listed = subprocess.run([*git, "ls-files", "-z"], cwd=dev.ROOT, capture_output=True, text=True, check=True)
    for name in filter(None, listed.stdout.split("\0")):
        if (dev.ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(dev.ROOT / name, folder / name)
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "all"]):
        subprocess.run([*git, *command], cwd=folder, check=True)
    return folder


@pytest.fixture(scope="module")
def archive(checkout) -> Path:
    comfy_cli(checkout, "node", "pack")
    return checkout / "node.zip"


def test_the_registry_accepts_it(checkout):
    said = comfy_cli(checkout, "node", "validate")
    assert "validation checks passed" in said and "warning" not in said.lower()


def test_the_archive_holds_what_users_need_and_no_more(archive):
    names = zipfile.ZipFile(archive).namelist()
    tops = {name.split("/")[0] for name in names}
    assert tops >= WHAT_USERS_NEED | {"nodes", "streaming_core", "workflows", "subgraphs", "web", "locales"}
    assert not tops & ONLY_FOR_DEVELOPERS
    assert archive.stat().st_size < 4_000_000


def test_requirements_are_the_host_s_own_but_for_diffusers_and_never_touch_torch():
    own = [line for line in (dev.ROOT / "requirements.txt").read_text().splitlines() if line and line[0] != "#"]
    names = [re.split(r"[^A-Za-z0-9_.-]", line)[0].lower() for line in own]
    hosts = {
        re.split(r"[^A-Za-z0-9_.-]", line.strip())[0].lower()
        for line in (dev.host_path() / "requirements.txt").read_text("utf-8").splitlines()
    }
    assert set(names) - hosts == {"diffusers"}
    assert not any(name.startswith("torch") for name in names)
    assert not any(sign in line for line in own for sign in ("==", "<", "~=")), "lower bounds only"


def test_it_works_in_a_fresh_host_with_the_host_s_own_packages(archive, tmp_path):
    unpacked = tmp_path / "pack"
    zipfile.ZipFile(archive).extractall(unpacked)
    # Packages that only developers have cannot be imported there.
    guard = tmp_path / "guard"
    guard.mkdir()
    lines = (dev.ROOT / "requirements-dev.txt").read_text().splitlines()
    foreign = [line.split("==")[0].split(">")[0] for line in lines if line[:1].isalpha()]
    foreign = [{"scenedetect-headless": "scenedetect"}.get(name, name) for name in foreign]
    foreign = [name for name in foreign if name not in ("torch", "websocket-client")]
    foreign.append("diffusers")  # required, but an installation in which it does not import must still start
    (guard / "sitecustomize.py").write_text(
        "import importlib.util, sys\n"
        f"spec = importlib.util.spec_from_file_location('shim', {str(dev.SHIM / 'sitecustomize.py')!r})\n"
        "spec.loader.exec_module(importlib.util.module_from_spec(spec))\n"
        "from importlib.machinery import PathFinder\n"
        "class Guard(PathFinder):\n"
        "    @classmethod\n"
        "    def find_spec(cls, name, path=None, target=None):\n"
        f"        return None if name.split('.')[0] in {foreign!r} else super().find_spec(name, path, target)\n"
        "sys.meta_path[:] = [Guard if finder is PathFinder else finder for finder in sys.meta_path]\n"
    )
    assert {"diffusers", "pytest"} <= set(foreign)
    with HostServer(pack=unpacked, env={"PYTHONPATH": str(guard)}) as server:
        assert server.import_failures() == []
        nodes = set(server.pack_nodes())
        assert len(nodes) > 40 and all(f'"{node}"' in FORMS.read_text() for node in nodes)
        [templates] = server.get("/workflow_templates").values()
        assert {path.stem for path in (dev.ROOT / "workflows").glob("*.json")} == set(templates)
