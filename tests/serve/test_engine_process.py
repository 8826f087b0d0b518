"""The engine in a process of its own: killed, stuck, stopped, signalled, orphaned, and not built at all."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil
import pytest
from serving_rig import NAME, command, wait_for

from headrace import LLM
from headrace.core.errors import HeadraceError

LONG = {"prompt": "a", "max_tokens": 1500, "ignore_eos": True}
ODD = (str(Path(__file__).with_name("odd_engine.py")),)
# Promised: one second from the event (or the limit) to the end of the server. The rest is for a busy machine.
PROMISED, GRACE = 1.0, 0.5


@dataclass
class Serving:
    """A server, its engine, and two clients in the middle of an answer."""

    server: subprocess.Popen[str]
    engine: psutil.Process
    url: str
    stream: list[str] = field(default_factory=list)
    whole: list[httpx.Response] = field(default_factory=list)
    clients: list[threading.Thread] = field(default_factory=list)

    def busy(self) -> None:
        """Starts the clients; returns when both are under way."""
        self.clients = [threading.Thread(target=self._stream), threading.Thread(target=self._whole)]
        self.clients[0].start()
        wait_for(lambda: len(self.stream) > 3)
        self.clients[1].start()
        time.sleep(0.1)

    def _stream(self) -> None:
        body = LONG | {"stream": True}
        with (
            contextlib.suppress(httpx.TransportError),  # then there is no last event, which is looked at
            httpx.stream("POST", f"{self.url}/v1/completions", json=body, timeout=30) as answer,
        ):
            self.stream += answer.iter_lines()

    def _whole(self) -> None:
        with contextlib.suppress(httpx.TransportError):
            self.whole.append(httpx.post(f"{self.url}/v1/completions", json=LONG, timeout=30))

    def health(self) -> httpx.Response:
        return httpx.get(f"{self.url}/health", timeout=5)

    def ends(self, since: float) -> None:
        """The server has ended with status 1 in time, and its engine with it."""
        assert self.server.wait(10) == 1
        assert time.monotonic() - since < PROMISED + GRACE
        wait_for(lambda: not self.engine.is_running() or self.engine.status() == psutil.STATUS_ZOMBIE, 1.0)

    def both_clients_were_told(self, word: str) -> None:
        for client in self.clients:
            client.join(5)
        *_, last, end = [line for line in self.stream if line][-2:]
        assert "[DONE]" not in end
        error = json.loads(end.removeprefix("data: "))["error"]
        assert error["code"] == "engine_unavailable"
        assert re.search(word, error["message"])
        assert last.startswith("data: ")
        (answer,) = self.whole
        assert answer.status_code == 503
        assert re.search(word, answer.json()["error"]["message"])


@contextmanager
def serving(folder: Path, *options: str) -> Iterator[Serving]:
    with command(folder, *options, launcher=ODD) as (process, url):
        (engine,) = psutil.Process(process.pid).children()
        try:
            yield Serving(process, engine, url)
        finally:
            if engine.is_running():
                engine.kill()


def test_a_killed_engine_fails_what_it_had_and_ends_the_server(folder: Path) -> None:
    with serving(folder, "--set", "max_batch_size=1") as running:
        running.busy()
        begin = time.monotonic()
        running.engine.kill()
        wait_for(lambda: running.health().status_code == 503, PROMISED)
        assert "SIGKILL" in running.health().json()["error"]["message"]
        running.ends(begin)
        running.both_clients_were_told("SIGKILL")


def test_a_client_that_does_not_read_does_not_keep_a_dead_server(folder: Path) -> None:
    with serving(folder) as running, socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", int(running.url.rsplit(":", 1)[1])))
        body = json.dumps(LONG | {"stream": True, "n": 64, "temperature": 1.0, "logprobs": 20}).encode()
        client.sendall(
            b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
            % len(body)
            + body
        )
        time.sleep(4.0)  # by now more has been written than the sockets hold
        begin = time.monotonic()
        running.engine.kill()
        running.ends(begin)


@pytest.mark.parametrize("how", [signal.SIGSTOP, signal.SIGUSR1, signal.SIGUSR2], ids=["process", "worker", "loop"])
def test_a_stuck_engine_is_as_good_as_dead_when_the_limit_has_passed(folder: Path, how: signal.Signals) -> None:
    limit = 0.8
    with serving(folder, "--heartbeat-limit", str(limit)) as running:
        time.sleep(1.5 * limit)
        assert running.health().status_code == 200, "an idle engine is not a stuck one"
        running.busy()
        begin = time.monotonic()
        running.engine.send_signal(how)
        time.sleep(0.3 * limit)
        assert running.health().status_code == 200
        wait_for(lambda: running.health().status_code == 503, 3.0)
        assert "stuck" in running.health().json()["error"]["message"]
        running.ends(begin + limit)
        assert time.monotonic() - begin > 0.8 * limit
        running.both_clients_were_told("stuck.*not turned")


def test_a_stopped_engine_without_work_is_found_too(folder: Path) -> None:
    with serving(folder, "--heartbeat-limit", "0.5") as running:
        begin = time.monotonic()
        running.engine.send_signal(signal.SIGSTOP)
        running.ends(begin + 0.5)


def test_a_server_that_was_stopped_itself_blames_nobody(folder: Path) -> None:
    with serving(folder, "--heartbeat-limit", "0.5") as running:
        for process in (running.server, running.engine):
            process.send_signal(signal.SIGSTOP)
        time.sleep(1.6)
        running.server.send_signal(signal.SIGCONT)
        time.sleep(0.25)
        running.engine.send_signal(signal.SIGCONT)
        time.sleep(0.5)
        assert running.health().status_code == 200


@pytest.mark.parametrize("stopped", [False, True])
def test_the_engine_does_not_outlive_the_server(folder: Path, stopped: bool) -> None:
    with serving(folder) as running:
        running.busy()
        if stopped:
            running.engine.send_signal(signal.SIGSTOP)
        running.server.kill()
        wait_for(lambda: not running.engine.is_running() or running.engine.status() == psutil.STATUS_ZOMBIE, 2.0)
        for client in running.clients:
            client.join(5)


def test_signals_are_the_servers_own(folder: Path) -> None:
    """Ctrl-C reaches the whole group of a terminal, and a supervisor's SIGTERM may: requests finish all the same."""
    with serving(folder) as running:
        for number in (signal.SIGINT, signal.SIGTERM):
            running.engine.send_signal(number)
        with httpx.stream(
            "POST", f"{running.url}/v1/completions", json=LONG | {"stream": True, "max_tokens": 60}, timeout=30
        ) as answer:
            lines = answer.iter_lines()
            next(lines)
            os.killpg(os.getpgid(running.engine.pid), signal.SIGINT)
            running.server.send_signal(signal.SIGINT)
            assert list(lines)[-2] == "data: [DONE]"
        assert running.server.wait(10) == 0


def test_only_the_engine_has_torch(folder: Path) -> None:
    with serving(folder) as running:
        loaded = lambda pid: "libtorch" in Path(f"/proc/{pid}/maps").read_text()  # noqa: E731
        answer = httpx.post(f"{running.url}/v1/completions", json={"prompt": "a", "max_tokens": 2}, timeout=30)
        assert answer.status_code == 200
        assert loaded(running.engine.pid)
        assert not loaded(running.server.pid)


# Starts that fail.


def _serve(model: Path, *options: str) -> tuple[int, str]:
    words = ["serve", str(model), "--port", "0", "--served-model-name", NAME, "--threads", "1", *options]
    done = subprocess.run(
        [sys.executable, "-m", "headrace.cli.entry", *words], capture_output=True, text=True, timeout=60
    )
    return done.returncode, " ".join(done.stderr.split())


def _cut(model: Path) -> None:
    (model / "model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")


def _unknown(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"architectures": ["NoSuchModel"]}))


def _huge(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"hidden_size": 1 << 18, "intermediate_size": 1 << 20}))


@pytest.mark.parametrize(
    ("damage", "options"),
    [
        (_cut, {}),
        (_unknown, {"load_format": "dummy"}),
        (_huge, {"load_format": "dummy"}),
        (lambda model: None, {"load_format": "dummy", "max_seq_len": 1 << 20}),
    ],
    ids=["damaged", "unknown", "memory", "sequence"],
)
def test_what_building_raises_is_said_as_if_it_were_built_here(
    folder: Path, tmp_path: Path, damage: Callable[[Path], None], options: dict[str, object]
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for file in folder.iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    damage(model)
    with pytest.raises(HeadraceError) as here:
        LLM(model, num_threads=1, **options)
    status, said = _serve(model, *(word for name, value in options.items() for word in ("--set", f"{name}={value}")))
    assert status == 2
    # Bytes available differ from one moment to the next.
    plain = lambda text: re.sub(r"[\d.]+ GiB", "GiB", " ".join(text.split()))  # noqa: E731
    assert f"error: {plain(str(here.value))}" in plain(said)
    assert "Traceback" not in said


def test_a_start_that_is_ended_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    words = [
        sys.executable,
        "-m",
        "headrace.cli.entry",
        "serve",
        str(folder),
        "--port",
        "0",
        "--set",
        "load_format=dummy",
    ]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=environment) as server:
        assert any("start engine process" in line for line in server.stderr)
        (engine,) = psutil.Process(server.pid).children()
        server.terminate()
        assert server.wait(5) == -signal.SIGTERM
        wait_for(lambda: not engine.is_running() or engine.status() == psutil.STATUS_ZOMBIE, 2.0)
    assert not list(tmp_path.iterdir())


def test_a_process_that_is_killed_while_it_builds_is_an_error(folder: Path, tmp_path: Path) -> None:
    killer = tmp_path / "killer.py"
    killer.write_text(
        "import os, signal, sys\n"
        "if sys.argv[1] == 'serve':\n"
        "    from headrace.cli.main import app\n"
        "    from headrace.engine.spawn import spawn\n"
        "    app(obj=spawn((sys.executable, __file__)))\n"
        "from headrace.engine.process import main\n"
        "main(lambda settings, phases: os.kill(os.getpid(), signal.SIGKILL))\n"
    )
    done = subprocess.run([sys.executable, killer, "serve", folder], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "ended by SIGKILL while it was starting" in " ".join(done.stderr.split())
