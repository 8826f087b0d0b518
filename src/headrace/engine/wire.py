"""What the engine's process and the one that serves say to each other: msgpack arrays, one message a step each way.

Either side may be gone at any moment, so no send waits for the other: queues have no limit (the output of a request
has), and whoever sends is the one that connects, which makes its queue at once. Time on the wire is the machine's
monotonic clock, which both processes read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import zmq

from headrace.core import errors
from headrace.core.errors import ConfigError, EngineDeadError, HeadraceError, RequestError
from headrace.core.outputs import SequenceUpdate
from headrace.core.plan import FinishReason
from headrace.core.request import Request
from headrace.core.sampling_params import SamplingParams

from .backend import StartReport

COMMANDS, EVENTS = "commands", "events"
"""Names of the sockets in their folder."""
_RECONNECT_MS = 5
_MAX_INT = (1 << 64) - 1
"""What msgpack holds."""
_MAX_PATH = 107
"""Bytes of the name of a UNIX socket."""


def meet(socket: zmq.Socket[bytes], folder: Path, name: str, *, is_sender: bool) -> None:
    """Joins one end of a connection to the other. Raises ``ConfigError`` if the folder's path is too long."""
    path = folder / name
    if len(bytes(path)) > _MAX_PATH:
        raise ConfigError(f"{path} is too long for the name of a socket; set TMPDIR to a folder of a shorter path")
    socket.set_hwm(0)
    socket.setsockopt(zmq.RECONNECT_IVL, _RECONNECT_MS)
    if is_sender:
        socket.connect(f"ipc://{path}")
    else:
        socket.bind(f"ipc://{path}")


class _Message(msgspec.Struct, frozen=True, array_like=True):
    pass


# To the engine.


class Build(_Message, tag=1):
    """First of all: what to build the engine from."""

    settings: dict[str, Any]
    log_level: int
    beat: float
    """Seconds between two ``Beat``."""
    spawned: float
    """Clock reading when the process was started."""


class Submit(_Message, tag=2):
    request: Request


class Cancel(_Message, tag=3):
    request_id: int


class Finish(_Message, tag=4):
    request_id: int
    index: int
    reason: FinishReason


class Call(_Message, tag=5):
    """What ``Backend.call`` can be asked; answered by ``Reply`` of the same number."""

    number: int
    name: str
    args: tuple[str, ...] = ()


Command = Build | Submit | Cancel | Finish | Call


# From the engine.


class Fault(_Message, tag=1):
    """An exception: the name of its class in ``core.errors``, or of any other class."""

    kind: str
    text: str
    param: str | None = None
    trace: str = ""
    """The traceback, where headrace did not raise it on purpose."""


class Ready(_Message, tag=2):
    """The engine is built and its loop turns."""

    report: StartReport


class Failed(_Message, tag=3):
    """The engine cannot be built."""

    fault: Fault


class News(_Message, tag=4):
    """All that a step, or a turn without one, has to say."""

    updates: list[SequenceUpdate]


class Beat(_Message, tag=5):
    """Sent regularly, whatever the loop does."""

    heartbeat: float
    is_idle: bool


class Reply(_Message, tag=6):
    number: int
    value: Any
    fault: Fault | None


class Log(_Message, tag=7):
    level: int
    text: str


class Dead(_Message, tag=8):
    """The loop has ended, and the process is about to."""

    text: str


Event = Ready | Failed | News | Beat | Reply | Log | Dead


def fault_of(error: BaseException, trace: str = "") -> Fault:
    """``error`` as it travels."""
    param = error.param if isinstance(error, RequestError) else None
    return Fault(type(error).__name__, str(error), param, trace)


def error_of(fault: Fault) -> HeadraceError:
    """The same error again; what headrace does not raise on purpose is an ``EngineDeadError``."""
    kind = getattr(errors, fault.kind, None)
    error: HeadraceError
    if not (isinstance(kind, type) and issubclass(kind, HeadraceError)):
        error = EngineDeadError(f"{fault.kind}: {fault.text}" if fault.text else fault.kind)
    elif issubclass(kind, RequestError):
        error = kind(fault.text, param=fault.param)
    else:
        error = kind(fault.text)
    if fault.trace:
        error.add_note(fault.trace)
    return error


def _to_wire(value: Any) -> Any:
    if isinstance(value, SamplingParams):
        if not all(isinstance(one, str) for one in value.logits_processor or ()):
            raise RequestError(
                "SamplingParams.logits_processor: the engine is in a process of its own, which a callable cannot"
                " reach; name one that the server was started with (--logits-processor NAME=module:object), or use"
                " LLM(...), whose engine is in the process of its caller",
                param="logits_processor",
            )
        for name in ("return_context_logits", "return_generation_logits"):
            if getattr(value, name):
                raise RequestError(
                    f"SamplingParams.{name}: logits stay in the engine's process; use LLM(...), or ask for logprobs",
                    param=name,
                )
        fields = value.model_dump(exclude_defaults=True)
        for name, field in fields.items():
            if isinstance(field, int) and field > _MAX_INT:
                raise RequestError(f"SamplingParams.{name}: {field} is above {_MAX_INT}", param=name)
        return fields
    if isinstance(value, Exception):
        return fault_of(value)
    raise TypeError(f"{type(value).__name__} does not travel between processes")


def _from_wire(kind: type, value: Any) -> Any:
    if kind is SamplingParams:
        return SamplingParams(**value)
    if kind is Exception:
        return error_of(msgspec.convert(value, Fault))
    raise TypeError(f"{kind} does not travel between processes")


encode = msgspec.msgpack.Encoder(enc_hook=_to_wire).encode
decode_command = msgspec.msgpack.Decoder(Command, dec_hook=_from_wire).decode
decode_event = msgspec.msgpack.Decoder(Event, dec_hook=_from_wire).decode
