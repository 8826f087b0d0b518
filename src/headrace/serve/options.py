"""The server's own options, as plain values."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """How the server presents the model, and its limits. Times in seconds."""

    model_name: str
    host: str = "127.0.0.1"
    port: int = 8000
    """0: any free one."""
    api_keys: tuple[str, ...] = ()
    """Empty: none is asked for."""
    max_body_bytes: int = 8 << 20
    request_timeout: float | None = None
    """A request that is older ends with what is there."""
    perf_metrics_max_requests: int = 1000
    """Records that /perf_metrics keeps until they are read; 0: none."""
    drain_limit: float = 30.0
    """How long requests under way may go on after SIGTERM; then they are cancelled."""
    heartbeat_limit: float = 300.0
    """How long one turn of the engine loop may take; then the engine counts as stuck, and the server ends. A step of
    many rows of a large model takes its time on a small machine."""
