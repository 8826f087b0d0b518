"""From what the user wrote to a path: a folder, a .gguf file, a built-in name or a hub id. No torch."""

from __future__ import annotations

import enum
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from headrace.core.errors import ModelError, did_you_mean

from .builtin import BUILTIN, cached_file, fetch_builtin
from .gguf_split import parts_by_name

Note = Callable[[str], None]
"""Takes one line about what is being done."""

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_HUB_FILES = ["*.json", "*.jinja", "*.safetensors", "tokenizer.model", "merges.txt", "vocab.txt"]
_HUB_IGNORED = ["*/*"]
"""Folders inside a repository hold other forms of the same model (original, onnx)."""


class ModelKind(enum.Enum):
    FOLDER = "folder"
    GGUF = "gguf"
    BUILTIN = "builtin"
    HUB = "hub"


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    """``path`` is what ``open_checkpoint`` and ``load_tokenizer`` take; ``name`` is what the model is called."""

    path: Path
    name: str
    kind: ModelKind


def resolve_model(
    model: str,
    *,
    revision: str | None = None,
    on_note: Note = lambda line: None,
    environ: Mapping[str, str] = os.environ,
) -> ResolvedModel:
    """Find the model, fetching it if need be.

    A built-in name wins over a folder of the same name in the working directory (write ``./name`` for that one); what
    exists as a path wins over a hub id. Raises ``ModelError``: what was looked for, why it failed, what to do.
    """
    if revision is not None and (model in BUILTIN or Path(model).exists()):
        raise ModelError(f"revision={revision!r} goes with a hub id; {model!r} is not fetched from the hub")
    if model in BUILTIN:
        path = fetch_builtin(BUILTIN[model], cache_folder(environ), on_note)
        return ResolvedModel(path, model, ModelKind.BUILTIN)
    path = Path(model).expanduser()
    if path.exists():
        return _local(path)
    if _HUB_ID.fullmatch(model):
        return ResolvedModel(_from_hub(model, revision, on_note), model, ModelKind.HUB)
    names = ", ".join(sorted(BUILTIN))
    raise ModelError(
        f"no model {model!r}.{did_you_mean(model, BUILTIN)} Give a folder, a .gguf file, a hub id like 'org/name', "
        f"or a built-in name: {names}."
    )


def cache_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """``$HEADRACE_CACHE``, else ``$XDG_CACHE_HOME/headrace``, else ``~/.cache/headrace``."""
    if environ.get("HEADRACE_CACHE"):
        return Path(environ["HEADRACE_CACHE"]).expanduser()
    base = environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "headrace"


def cached_builtin(name: str, environ: Mapping[str, str] = os.environ) -> Path | None:
    """Path of a built-in model if it has been fetched; fetches nothing."""
    return cached_file(BUILTIN[name], cache_folder(environ))


def _local(path: Path) -> ResolvedModel:
    name = path.resolve().name
    if path.is_file():
        if path.suffix != ".gguf":
            raise ModelError(f"{path} is a file, but not a .gguf one; give the folder that holds the model")
        return ResolvedModel(path, path.stem, ModelKind.GGUF)
    if (path / "config.json").is_file():
        return ResolvedModel(path, name, ModelKind.FOLDER)
    files = sorted(path.glob("*.gguf"))
    models = sorted({parts_by_name(file)[0] for file in files})
    if len(models) == 1:
        return ResolvedModel(models[0], name, ModelKind.GGUF)
    found = f"{len(files)} .gguf files: name one of {', '.join(file.name for file in files)}" if files else "neither"
    raise ModelError(f"{path}: expected a folder with config.json or with one .gguf file, found {found}")


def _from_hub(model: str, revision: str | None, on_note: Note) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    on_note(f"looking for {model} on the Hugging Face hub (configuration, tokenizer and safetensors files)")
    try:
        folder = snapshot_download(model, revision=revision, allow_patterns=_HUB_FILES, ignore_patterns=_HUB_IGNORED)
    except GatedRepoError as error:
        raise ModelError(
            f"{model}: access on the hub is restricted; accept the terms on its page and log in with `hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise ModelError(
            f"{model}: no such path here and no such model on the hub (a private one needs `hf auth login`)"
        ) from error
    except RevisionNotFoundError as error:
        raise ModelError(f"{model}: the hub has no revision {revision!r} of it") from error
    except LocalEntryNotFoundError as error:
        raise ModelError(
            f"{model}: not in the hub's cache on this machine, and the hub cannot be reached. Connect and try again, "
            f"give a local folder, or use a built-in name: {', '.join(sorted(BUILTIN))}."
        ) from error
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise ModelError(f"{model}: the hub could not deliver it: {error}") from error
    path = Path(folder)
    if not (path / "config.json").is_file() or not any(path.glob("*.safetensors")):
        raise ModelError(
            f"{model}: the hub's copy has no config.json with *.safetensors. If it holds a .gguf file, download that "
            "and give its path."
        )
    return path
