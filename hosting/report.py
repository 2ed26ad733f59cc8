"""How a prompt went on a real host: what `hosting.server` reads out of its messages."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path


class HostError(AssertionError):
    """The host did not start, died, or ended a prompt in another way than the test wanted; carries the log's tail."""


@dataclass(frozen=True)
class NodeError:
    """What the user would see on a red node."""

    node_id: str | None
    node_type: str | None
    type: str
    message: str
    traceback: str = ""


@dataclass(frozen=True)
class OutputFile:
    node: str
    kind: str
    path: Path


@dataclass(frozen=True)
class Progress:
    """One movement of one node's progress bar, `seconds` after the prompt was queued."""

    seconds: float
    node: str
    value: float
    max: float


@dataclass
class RunReport:
    """How one prompt went.

    status: success | partial (the host dropped outputs that failed validation and ran the rest) | refused | error |
    interrupted | timeout | died.
    """

    status: str = "running"
    started: bool = False
    error: NodeError | None = None
    node_errors: dict = field(default_factory=dict)
    outputs: list[OutputFile] = field(default_factory=list)
    ui: dict[str, dict] = field(default_factory=dict)
    progress: list[Progress] = field(default_factory=list)
    previews: int = 0
    executed: list[str] = field(default_factory=list)
    cached: list[str] = field(default_factory=list)
    node_seconds: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    canceled_at: float | None = None
    log: str = ""

    def check(self, status: str = "success") -> RunReport:
        """This report, if it ended with `status`; raises HostError with everything known otherwise."""
        if self.status != status:
            raise HostError(
                f"The prompt ended as {self.status!r} instead of {status!r} after {self.seconds:.1f} s.\n"
                f"error: {self.error}\nnode errors: {json.dumps(self.node_errors, indent=1)}\n"
                f"end of the log:\n{self.log}"
            )
        return self

    @property
    def messages(self) -> dict[str, str]:
        """Everything that was refused or went wrong, as node id -> text; refusals before execution included."""
        found = {
            node: "; ".join(f"{e.get('message', '')}: {e.get('details', '')}" for e in entry.get("errors", []))
            for node, entry in self.node_errors.items()
        }
        if self.error is not None:
            found[self.error.node_id or ""] = self.error.message
        return found

    def bars(self) -> dict[str, tuple[float, float]]:
        """Last (value, max) of every node's progress bar."""
        return {step.node: (step.value, step.max) for step in self.progress}


def record(kind: str, body: dict, seconds: float, report: RunReport) -> None:
    """Enters one message of the host into the report."""
    if kind == "progress_state":
        for node, state in (body.get("nodes") or {}).items():
            shown_on = state.get("display_node_id") or node
            step = Progress(seconds, shown_on, state.get("value") or 0, state.get("max") or 0)
            if step.max and report.bars().get(step.node) != (step.value, step.max):
                report.progress.append(step)
    elif kind == "execution_start":
        report.started = True
    elif kind == "executed":
        report.executed.append(body.get("node"))
    elif kind == "execution_cached":
        report.cached = list(body.get("nodes") or [])
    elif kind == "execution_success":
        report.status = "success"
    elif kind == "execution_interrupted":
        report.status = "interrupted"
        report.error = NodeError(body.get("node_id"), body.get("node_type"), "interrupted", "Cancelled")
    elif kind == "execution_error":
        report.status = "error"
        report.error = NodeError(
            body.get("node_id"),
            body.get("node_type"),
            body.get("exception_type", ""),
            (body.get("exception_message") or "").strip(),
            "".join(body.get("traceback") or []),
        )


def refusal(reply: dict) -> NodeError:
    """The host's reason for not queueing a prompt at all."""
    error = reply.get("error") or {}
    if not isinstance(error, dict):
        error = {"message": str(error)}
    text = " ".join(part for part in (error.get("message"), error.get("details")) if part)
    return NodeError(None, None, error.get("type", ""), text)
