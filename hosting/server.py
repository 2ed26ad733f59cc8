"""A real ComfyUI server for one pack, with folders of its own, driven over its API.

    with HostServer(pack=ROOT) as server:
        report = server.run(prompt).check()
        print(report.outputs[0].path, report.seconds)

The server runs on the CPU, listens on 127.0.0.1 only, and is always ended by its own process id.
"""

from __future__ import annotations

import atexit
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import websocket

import dev

from .report import HostError, OutputFile, RunReport, record, refusal

PACK_FOLDER = "ComfyUI-StreamingT2V"
FOLDERS = ("custom_nodes", "models", "input", "output", "temp", "user")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class HostServer:
    """One host process. Use as a context manager, or call `start` and `stop`.

    pack: folder to load, put into custom_nodes as ComfyUI-StreamingT2V (None: no pack). extra: more arguments for the
    host, such as "--cache-none". base: folder for models, input, output; a temporary one, removed at the end, if None.
    env: variables added to the host's environment. host: folder with main.py (COMFYUI_PATH or the pinned host).
    """

    def __init__(
        self,
        pack: Path | None = None,
        extra: Sequence[str] = (),
        *,
        base: Path | None = None,
        env: Mapping[str, str] | None = None,
        host: Path | None = None,
        start_timeout: float = 300.0,
    ):
        self.host = Path(host) if host else dev.host_path()
        self.pack, self.extra, self.start_timeout = pack, tuple(extra), start_timeout
        self._env, self._own_base = dict(env or {}), base is None
        self.base = Path(base) if base else Path(tempfile.mkdtemp(prefix="host-server-"))
        self.process: subprocess.Popen | None = None
        self.start_seconds = 0.0
        self.system: dict = {}
        self.port = 0

    # -- life of the process -------------------------------------------------------------------------------------------

    def __enter__(self) -> HostServer:
        return self.start()

    def __exit__(self, *_) -> None:
        self.stop()

    def start(self) -> HostServer:
        """Starts the process and returns when it answers; raises HostError with the log when it does not."""
        if not (self.host / "main.py").is_file():
            raise HostError(f"No ComfyUI host at {self.host}: run `python dev.py setup`, or set COMFYUI_PATH.")
        for name in FOLDERS:
            (self.base / name).mkdir(parents=True, exist_ok=True)
        if self.pack is not None:
            place_pack(Path(self.pack), self.base / "custom_nodes" / PACK_FOLDER)
        self.port = free_port()
        # Only the shim goes onto the path: the pack must not find its own modules by any other way than the host's.
        env = {**dev.child_environment(), "PYTHONPATH": str(dev.SHIM), "PYTHONUNBUFFERED": "1", **self._env}
        command = [sys.executable, "main.py", "--cpu", "--listen", "127.0.0.1", "--port", str(self.port)]
        command += ["--base-directory", str(self.base), "--database-url", "sqlite:///:memory:"]
        command += ["--disable-api-nodes", "--disable-auto-launch", *self.extra]
        begin = time.monotonic()
        with open(self.log_path, "wb") as log:
            self.process = subprocess.Popen(
                command, cwd=self.host, env=env, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        atexit.register(self.stop)
        while not self.system:
            if self.process.poll() is not None:
                raise self._failed(f"The host ended with code {self.process.returncode} while starting.")
            try:
                self.system = self.get("/system_stats", timeout=2)["system"]
            except OSError:
                if time.monotonic() - begin > self.start_timeout:
                    raise self._failed(f"The host did not answer within {self.start_timeout:g} s.") from None
                time.sleep(0.1)
        self.start_seconds = time.monotonic() - begin
        return self

    def stop(self) -> None:
        """Ends the process (asked first, killed after 3 s) and removes the temporary folder; safe to call twice."""
        atexit.unregister(self.stop)
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM if sys.platform == "win32" else signal.SIGINT)
            try:
                self.process.wait(3)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        if self._own_base:
            shutil.rmtree(self.base, ignore_errors=True)

    def kill(self) -> None:
        """Ends the process at once, as a power cut would; the folders stay until `stop`."""
        self.process.kill()
        self.process.wait()

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def _failed(self, sentence: str) -> HostError:
        error = HostError(f"{sentence}\nend of the log:\n{self.log_tail()}")
        self.stop()
        return error

    # -- what the host says about itself -------------------------------------------------------------------------------

    @property
    def log_path(self) -> Path:
        return self.base / "server.log"

    def log(self) -> str:
        return self.log_path.read_text("utf-8", errors="replace") if self.log_path.exists() else ""

    def log_tail(self, characters: int = 6000) -> str:
        return self.log()[-characters:]

    @property
    def version(self) -> str:
        return self.system.get("comfyui_version") or dev.host_version(self.host)

    def import_failures(self) -> list[str]:
        """Lines of the log in which the host says that it could not import a pack."""
        return [line for line in self.log().splitlines() if "IMPORT FAILED" in line or "Cannot import" in line]

    def import_seconds(self) -> float:
        """Seconds that importing the pack took, from the host's own list of import times (three host versions)."""
        found = re.search(rf"([0-9.]+) seconds.*{re.escape(PACK_FOLDER)}", self.log())
        if not found:
            raise HostError(f"The host's log names no import time of {PACK_FOLDER}:\n{self.log_tail()}")
        return float(found[1])

    def object_info(self, node_type: str | None = None) -> dict:
        """The host's description of all node types, or of one."""
        return self.get(f"/object_info/{node_type}" if node_type else "/object_info", timeout=120)

    def pack_nodes(self) -> dict[str, dict]:
        """Descriptions of the node types that came from custom_nodes."""
        info = self.object_info()
        return {k: v for k, v in info.items() if str(v.get("python_module", "")).startswith("custom_nodes.")}

    def rss_peak(self) -> int | None:
        """Peak resident bytes of the process since its start or `reset_rss_peak`; None where Linux does not say."""
        try:
            return int(re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{self.process.pid}/status").read_text())[1]) * 1024
        except OSError:
            return None

    def reset_rss_peak(self) -> None:
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")

    # -- talking to it -------------------------------------------------------------------------------------------------

    def get(self, path: str, timeout: float = 30):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=timeout) as reply:
            return json.load(reply)

    def post(self, path: str, body: object, timeout: float = 60) -> tuple[int, dict]:
        """(HTTP status, decoded answer); an answer that is not JSON comes as {"error": text}."""
        data, kind = json.dumps(body).encode(), {"Content-Type": "application/json"}
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data, kind)
        try:
            with urllib.request.urlopen(request, timeout=timeout) as reply:
                status, text = reply.status, reply.read()
        except urllib.error.HTTPError as error:
            status, text = error.code, error.read()
        try:
            return status, json.loads(text or b"{}")
        except ValueError:
            return status, {"error": text.decode(errors="replace")}

    def cancel(self) -> None:
        """What the Cancel button does."""
        self.post("/interrupt", {})

    def free(self) -> None:
        """Unloads all models and forgets cached results."""
        self.post("/free", {"unload_models": True, "free_memory": True})

    def run(
        self,
        prompt: dict,
        timeout: float = 600.0,
        cancel_when: Callable[[RunReport], bool] | float | None = None,
    ) -> RunReport:
        """Queues one prompt in API form and follows it to its end.

        cancel_when: seconds after which Cancel is pressed, or a function of the report so far, asked after each message
        (`lambda r: len(r.progress) >= 3`). The host forgets a Cancel that comes before it has `started`.
        """
        report, client = RunReport(), uuid.uuid4().hex
        address = f"ws://127.0.0.1:{self.port}/ws?clientId={client}"
        connection = websocket.create_connection(address, timeout=10)
        try:
            # Hosts send previews that name their node only to clients that ask for it in their first message.
            hello = {"type": "feature_flags", "data": {"supports_preview_metadata": True}}
            connection.send(json.dumps(hello))
            begin = time.monotonic()
            status, reply = self.post("/prompt", {"prompt": prompt, "client_id": client})
            report.node_errors = reply.get("node_errors") or {}
            if status != 200:
                report.status, report.error = "refused", refusal(reply)
            else:
                self._follow(connection, reply["prompt_id"], begin, timeout, cancel_when, report)
                self._collect(reply["prompt_id"], report)
            report.seconds = time.monotonic() - begin
        finally:
            connection.close()
        report.log = self.log_tail()
        return report

    def _follow(self, connection, prompt_id: str, begin: float, timeout: float, cancel_when, report: RunReport) -> None:
        """Reads messages into the report until the prompt has ended."""
        running, since = None, begin
        connection.settimeout(0.2)
        while report.status == "running":
            now = time.monotonic()
            if now - begin > timeout:
                self.cancel()
                report.status = "timeout"
                return
            if cancel_when is not None and report.canceled_at is None:
                if cancel_when(report) if callable(cancel_when) else now - begin > cancel_when:
                    report.canceled_at = now - begin
                    self.cancel()
            try:
                opcode, data = connection.recv_data()
            except websocket.WebSocketTimeoutException:
                if not self.alive:
                    report.status = "died"
                continue
            except (OSError, websocket.WebSocketException):
                report.status = "died"
                return
            if opcode == websocket.ABNF.OPCODE_BINARY:
                report.previews += 1
            if opcode != websocket.ABNF.OPCODE_TEXT:
                continue
            message = json.loads(data)
            body = message.get("data") or {}
            if body.get("prompt_id") not in (None, prompt_id):
                continue
            now = time.monotonic()
            record(message["type"], body, now - begin, report)
            if message["type"] == "executing" or report.status != "running":
                if running is not None:
                    report.node_seconds[running] = report.node_seconds.get(running, 0.0) + now - since
                running, since = body.get("node"), now
        if report.status == "success" and report.node_errors:
            report.status = "partial"

    def _collect(self, prompt_id: str, report: RunReport) -> None:
        """Output files and texts from the history, which is written a moment after the last message."""
        entry: dict = {}
        deadline = time.monotonic() + 3
        while self.alive and not entry and time.monotonic() < deadline:
            entry = self.get(f"/history/{prompt_id}").get(prompt_id, {})
            if not entry:
                time.sleep(0.05)
        for node, shown in (entry.get("outputs") or {}).items():
            for kind, items in shown.items():
                files = [i for i in items if isinstance(i, dict) and "filename" in i] if isinstance(items, list) else []
                for item in files:
                    folder = self.base / item.get("type", "output") / item.get("subfolder", "")
                    report.outputs.append(OutputFile(node, kind, folder / item["filename"]))
                if not files:
                    report.ui.setdefault(node, {})[kind] = items


def place_pack(pack: Path, target: Path) -> None:
    """Links the pack into custom_nodes, or copies it where links are not allowed."""
    if target.exists():
        return
    try:
        target.symlink_to(pack.resolve(), target_is_directory=True)
    except OSError:
        shutil.copytree(pack, target, ignore=shutil.ignore_patterns(".*", "__pycache__", "out"))
