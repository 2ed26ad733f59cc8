"""The host's code and the pack inside this process: for training, benchmarks and tests of what the host computes.

`import_host()` once, then `import comfy...` as a pack would. `import_pack()` loads the pack the way the host does, as
a package with a name of its own, so that its relative imports work and its `nodes` folder never meets the host's
`nodes.py`:

    import_host()
    pack = import_pack()
    from comfyui_streamingt2v.nodes.host import build

Inside the pack, `streaming_core` is the very module that tests import as `streaming_core`: classes, errors and caches
are the same objects under both names.
"""

from __future__ import annotations

import atexit
import importlib
import importlib.util
import os
import shutil
import sys
import tempfile
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import dev

PACK_NAME = "comfyui_streamingt2v"
# Top-level names that the host owns and that the working directory could answer for by mistake.
HOST_NAMES = ("nodes", "comfy", "comfy_api", "comfy_extras", "comfy_execution", "folder_paths", "server", "utils")


class HostMissing(RuntimeError):
    """There is no host to import; the message says how to get one."""


def import_host(*arguments: str, cpu: bool = True) -> Path:
    """Puts the host on `sys.path`, lets it read its command line, and returns its folder; once per process.

    The host keeps its models, inputs and outputs in a temporary folder that goes when this process ends.
    `arguments` are further ones for the host; they count at the first call only.
    """
    host = dev.host_path()
    if str(host) in sys.path:
        return host
    if not (host / "main.py").is_file():
        raise HostMissing(f"No ComfyUI host at {host}: run `python dev.py setup`, or set COMFYUI_PATH to a checkout.")
    early = [name for name in HOST_NAMES if name in sys.modules]
    if early:
        raise RuntimeError(f"import_host() comes too late, already imported: {', '.join(early)}.")
    dev.apply_environment()
    base = tempfile.mkdtemp(prefix="host-in-process-")
    atexit.register(shutil.rmtree, base, ignore_errors=True)
    for folder in ("models", "input", "output", "temp", "user", "custom_nodes"):
        os.mkdir(os.path.join(base, folder))
    sys.path.insert(0, str(host))
    own, sys.argv = sys.argv, [sys.argv[0], "--base-directory", base, "--disable-api-nodes", *arguments]
    if cpu:
        sys.argv.append("--cpu")
    try:
        options = importlib.import_module("comfy.options")
        options.enable_args_parsing()
        importlib.import_module("comfy.cli_args")
    finally:
        sys.argv = own
    importlib.import_module("folder_paths")
    return host


class CoreAlias(MetaPathFinder, Loader):
    """Answers `comfyui_streamingt2v.streaming_core...` with the top-level `streaming_core...`."""

    prefix = f"{PACK_NAME}.streaming_core"

    def find_spec(self, fullname, path=None, target=None):
        if fullname == self.prefix or fullname.startswith(self.prefix + "."):
            return ModuleSpec(fullname, self)
        return None

    def create_module(self, spec):
        module = importlib.import_module(spec.name.removeprefix(PACK_NAME + "."))
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module):
        # The import system has just replaced the module's own spec, on which its relative imports depend.
        module.__spec__ = module.__spec__.loader_state
        # What it has imported is known from now on: the import system would set a module that it loads as an attribute
        # of its package, in place of a function of the same name (`identity.describe`).
        inside = module.__name__ + "."
        for name in [name for name in sys.modules if name.startswith(inside)]:
            sys.modules.setdefault(f"{PACK_NAME}.{name}", sys.modules[name])


def import_pack() -> ModuleType:
    """The pack's root module under the name `comfyui_streamingt2v`; loaded once per process."""
    if PACK_NAME in sys.modules:
        return sys.modules[PACK_NAME]
    if str(dev.ROOT) not in sys.path:
        sys.path.append(str(dev.ROOT))
    if not any(isinstance(finder, CoreAlias) for finder in sys.meta_path):
        sys.meta_path.insert(0, CoreAlias())
    spec = importlib.util.spec_from_file_location(
        PACK_NAME, dev.ROOT / "__init__.py", submodule_search_locations=[str(dev.ROOT)]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[PACK_NAME] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[PACK_NAME]
        raise
    return module
