"""The rooms of docs/design.md, section 2: what may import what, and habits that every module keeps."""

from __future__ import annotations

import ast
import itertools
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import dev

ROOT = dev.ROOT
HOST_MODULES = {
    "comfy",
    "comfy_api",
    "comfy_api_nodes",
    "comfy_config",
    "comfy_execution",
    "comfy_extras",
    "comfyui_version",
    "execution",
    "folder_paths",
    "latent_preview",
    "node_helpers",
    "nodes",
    "server",
}
ROOMS = (
    "streaming_core", "nodes", "hosting", "training", "tiny_models", "benchmarks", "workflows", "subgraphs", "docs",
    "web", "tests", "dev",
)  # fmt: skip
DEVELOPERS = ("hosting", "training", "tiny_models", "benchmarks")
"""Rooms that are not part of the pack; each may import those before it and the pack's, none of them tests/."""
LONGEST_MODULE, LONGEST_EXECUTE = 400, 25
MOST_FILES = {"nodes/host": 12, "streaming_core": 6}
"""Python files of a folder, those of its wings and its __init__.py left out."""


def python_files(*rooms: str) -> list[Path]:
    return [path for room in rooms for path in sorted((ROOT / room).rglob("*.py")) if "__pycache__" not in path.parts]


CORE = python_files("streaming_core")
OURS = [path for room in ("streaming_core", "nodes", *DEVELOPERS) for path in python_files(room)]
PACK = [ROOT / "__init__.py", *CORE, *python_files("nodes")]
HOST_ROOM = ROOT / "nodes" / "host"


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"), str(path))


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every import, wherever it stands; relative ones resolved from the root of the pack."""
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            dot = "." if node.level else ""
            for alias in node.names:
                yield node.lineno, dot + ".".join(filter(None, [*above, node.module, alias.name]))


def where(path: Path, line: int, what: str) -> str:
    return f"{path.relative_to(ROOT)}:{line}: {what}"


def calls(path: Path) -> Iterator[tuple[int, str, ast.Call]]:
    """(line, dotted name of what is called, the call)."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call):
            yield node.lineno, ast.unparse(node.func), node


def test_the_scan_sees_the_pack():
    assert len(CORE) > 3 and len(PACK) > len(CORE)
    assert all(path.is_file() for path in PACK)


def test_imports_are_found_and_resolved(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    module = tmp_path / "nodes" / "host" / "x.py"
    module.parent.mkdir(parents=True)
    module.write_text("import comfy.sd as s\ndef f():\n    from ...streaming_core.a import b\n    from . import c\n")
    assert [name for _, name in imports(module)] == ["comfy.sd", ".streaming_core.a.b", ".nodes.host.c"]
    (tmp_path / "x.py").write_text("from .nodes import A\nfrom nodes import B\n")
    assert [name for _, name in imports(tmp_path / "x.py")] == [".nodes.A", "nodes.B"]


def test_core_imports_without_the_host():
    """Every module of streaming_core, with the host and optional libraries out of reach, in a process of its own."""
    code = f"""
import importlib, pkgutil, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {sorted(HOST_MODULES | {"diffusers", "transformers", "torchvision", "kornia"})}:
            raise ImportError(f"{{name}} is out of reach")

sys.meta_path.insert(0, Refuse())
import streaming_core
names = [module.name for module in pkgutil.walk_packages(streaming_core.__path__, "streaming_core.")]
for name in names:
    importlib.import_module(name)
print(len(names))
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr[-3000:]
    assert int(run.stdout) >= len(CORE) - 5  # all but the root and folders without an __init__


def test_only_the_host_room_imports_the_host():
    elsewhere = [path for path in [*PACK, *python_files("training")] if HOST_ROOM not in path.parents]
    wrong = [
        where(path, line, name)
        for path in elsewhere
        for line, name in imports(path)
        if name.partition(".")[0] in HOST_MODULES
    ]
    assert not wrong


def test_arrows_point_one_way():
    """nodes -> nodes/host -> streaming_core."""
    wrong = [where(p, line, name) for p in CORE for line, name in imports(p) if name.startswith(".nodes")]
    wrong += [
        where(path, line, name)
        for path in python_files("nodes/host")
        for line, name in imports(path)
        if name.startswith(".nodes.") and not name.startswith(".nodes.host")
    ]
    wrong += [
        where(path, line, name)
        for path in PACK
        for line, name in imports(path)
        if name.startswith(tuple("." + room for room in (*DEVELOPERS, "tests")))
    ]
    assert not wrong


def test_developers_rooms_point_one_way():
    """The pack, then `DEVELOPERS` in order: each imports what stands before it. Only tests/ imports tests/."""
    wrong = []
    for number, room in enumerate(DEVELOPERS):
        refused = {"tests", *DEVELOPERS[number + 1 :]}
        wrong += [
            where(path, line, name)
            for path in python_files(room)
            for line, name in imports(path)
            if name.lstrip(".").partition(".")[0] in refused
        ]
        texts = [(path, node) for path in python_files(room) for node in ast.walk(tree(path))]
        wrong += [
            where(path, node.lineno, repr(node.value))
            for path, node in texts
            if isinstance(node, ast.Constant) and re.fullmatch(r"tests\.[a-z_.]+", str(node.value))
        ]
    assert not wrong


def files_of(name: str, importer: Path) -> Iterator[Path]:
    """Our files that importing the dotted `name` runs: the module, and the __init__.py of packages around it.

    A package's own modules have it around them already.
    """
    parts = name.lstrip(".").split(".")
    for count in range(1, len(parts) + 1):
        inner = ROOT.joinpath(*parts[:count])
        if (inner / "__init__.py").is_file() and inner not in importer.parents:
            yield inner / "__init__.py"
        elif inner.with_suffix(".py").is_file():
            yield inner.with_suffix(".py")


Arrows = dict[Path, dict[Path, str]]
"""From -> to -> the import behind it."""


def arrows(files: list[Path]) -> tuple[Arrows, Arrows]:
    """Between files, and between the folders in which they lie."""
    known, by_file, by_folder = set(files), {path: {} for path in files}, {path.parent: {} for path in files}
    for path in files:
        for line, name in imports(path):
            for target in files_of(name, path):
                if target in known and target != path:
                    by_file[path].setdefault(target, where(path, line, name))
                    if target.parent != path.parent:
                        by_folder[path.parent].setdefault(target.parent, where(path, line, name))
    return by_file, by_folder


def circles(graph: Arrows) -> list[list[str]]:
    """Of every circle the imports that make it, one circle for each arrow that leads back."""
    found: list[list[str]] = []
    done: set[Path] = set()

    def visit(place: Path, way: list[Path]) -> None:
        for target in graph[place]:
            if target in way:
                around = [*way[way.index(target) :], target]
                found.append([graph[one][two] for one, two in itertools.pairwise(around)])
            elif target not in done:
                visit(target, [*way, target])
        done.add(place)

    for place in graph:
        if place not in done:
            visit(place, [place])
    return found


def test_circles_are_found(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    texts = {
        "nodes/__init__.py": "from .host import a\n",
        "nodes/host/__init__.py": "",
        "nodes/host/a.py": "def f():\n    from . import b\n",
        "nodes/host/b.py": "from .wing.c import d\n",
        "nodes/host/wing/__init__.py": "from .c import d\n",
        "nodes/host/wing/c.py": "from ...streaming_core import x\n",
    }
    for name, text in texts.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    files = [tmp_path / name for name in texts]
    assert [circles(graph) for graph in arrows(files)] == [[], []]
    (tmp_path / "nodes/host/wing/c.py").write_text("from .. import e\n")
    (tmp_path / "nodes/host/e.py").write_text("")
    of_files, of_folders = map(circles, arrows([*files, tmp_path / "nodes/host/e.py"]))
    assert not of_files and [len(circle) for circle in of_folders] == [2]
    (tmp_path / "nodes/host/e.py").write_text("from .a import f\n")
    of_files, _ = map(circles, arrows([*files, tmp_path / "nodes/host/e.py"]))
    assert ["nodes/host/e.py:1: .nodes.host.a.f"] == [line for circle in of_files for line in circle if "/e.py" in line]


def test_no_import_circles_between_files():
    assert not circles(arrows(OURS)[0])


def test_no_import_circles_between_folders():
    assert not circles(arrows(OURS)[1])


def test_pack_imports_itself_relatively():
    """The host loads the pack under a name of its own: an absolute import of a room would find nothing, or the host."""
    wrong = [where(p, line, n) for p in PACK for line, n in imports(p) if n.partition(".")[0] in set(ROOMS) - {"nodes"}]
    assert not wrong


def test_no_module_is_long():
    lengths = {path: len(path.read_text("utf-8").splitlines()) for path in [ROOT / "__init__.py", *OURS]}
    assert not [where(path, length, "lines") for path, length in lengths.items() if length > LONGEST_MODULE]


def test_no_execute_is_long():
    """A node unpacks, calls and wraps; what is longer belongs into nodes/host. Its list of inputs does not count."""
    wrong = []
    for path in python_files("nodes"):
        for group in (node for node in ast.walk(tree(path)) if isinstance(node, ast.ClassDef)):
            for method in (node for node in group.body if getattr(node, "name", "") == "execute"):
                length = method.end_lineno - method.body[0].lineno + 1
                if length > LONGEST_EXECUTE:
                    wrong.append(where(path, method.lineno, f"{group.name}.execute has {length} lines"))
    assert not wrong


@pytest.mark.parametrize("folder", MOST_FILES)
def test_no_folder_is_a_heap(folder):
    """What belongs to one family or task lies in a wing of its own."""
    files = [path.name for path in (ROOT / folder).glob("*.py") if path.name != "__init__.py"]
    assert len(files) <= MOST_FILES[folder], files


def test_no_device_is_hard_coded():
    wrong = []
    for path in PACK:
        for line, name, call in calls(path):
            given = [*call.args, *(keyword.value for keyword in call.keywords)]
            texts = [argument.value for argument in given if isinstance(argument, ast.Constant)]
            if name.endswith(".cuda") or any(re.fullmatch(r"(cuda|mps|xpu)(:\d+)?", str(text)) for text in texts):
                wrong.append(where(path, line, ast.unparse(call)))
        for node in ast.walk(tree(path)):
            defaults = [*node.defaults, *node.kw_defaults] if isinstance(node, ast.arguments) else []
            if any(isinstance(d, ast.Constant) and str(d.value).startswith("cuda") for d in defaults):
                wrong.append(where(path, 0, "a device as default argument"))
    assert not wrong


def test_no_global_seeds_no_prints_no_path_edits():
    refused = re.compile(
        r"(torch|th)(\.cuda|\.random)?\.(manual_seed|manual_seed_all|seed)|random\.seed|np\.random\.\w+|numpy\.random\.\w+"
        r"|print|eval|exec|sys\.path\.\w+"
    )
    allowed = re.compile(r"np\.random\.(default_rng|Generator)|numpy\.random\.(default_rng|Generator)")
    wrong = [
        where(path, line, name)
        for path in PACK
        for line, name, _ in calls(path)
        if refused.fullmatch(name) and not allowed.fullmatch(name)
    ]
    assert not wrong


def test_names_of_modules():
    vague = {"utils", "util", "helpers", "misc", "common"}
    assert not [path for path in OURS if path.stem in vague]


def test_tests_are_plain_folders():
    """An __init__.py there would make pytest import the root, whose __init__.py belongs to the host."""
    assert not [str(path.relative_to(ROOT)) for path in (ROOT / "tests").rglob("__init__.py")]


def requirements(text: str) -> dict[str, str]:
    """Package name -> the rest of its line."""
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    parts = (re.fullmatch(r"([A-Za-z0-9_.-]+)(.*)", line) for line in lines if line)
    return {part[1].lower(): part[2].strip() for part in parts}


def test_requirements_leave_the_users_environment_alone():
    found = requirements((ROOT / "requirements.txt").read_text("utf-8"))
    assert found and "numpy" in found
    # kornia and diffusers may be there: neither brings another torch than the one that is installed. Nothing that is
    # built for one release of torch may be.
    assert not set(found) & {"torch", "torchvision", "torchaudio", "xformers", "opencv-python"}
    assert all(re.fullmatch(r"(>=[0-9.]+)?", bound) for bound in found.values()), found


def test_diffusers_is_installed_together_with_transformers():
    """Alone, it may bring a huggingface_hub that the installed transformers refuses (see the file)."""
    names = re.findall(r"^[A-Za-z0-9_-]+", (ROOT / "requirements.txt").read_text("utf-8"), re.MULTILINE)
    assert names[-3:] == ["transformers", "diffusers", "transformers"]


def test_pyproject_lists_the_same_requirements():
    tomllib = pytest.importorskip("tomllib", reason="Python 3.11")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    listed = requirements("\n".join(project["project"]["dependencies"]))
    assert listed == requirements((ROOT / "requirements.txt").read_text("utf-8"))
    assert project["tool"]["comfy"]["requires-comfyui"].startswith(">=")
    for key in ("readme", "license"):
        name = project["project"][key]
        assert (ROOT / (name if isinstance(name, str) else name["file"])).is_file()


def test_no_file_is_large():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    files = [ROOT / name for name in listed.stdout.split("\0") if name]
    # The demo models have limits of their own: tests/host/test_demo.py.
    files = [path for path in files if path.is_file() and ROOT / "demo_models" not in path.parents]
    assert not [str(path) for path in files if path.stat().st_size > 4_000_000]
