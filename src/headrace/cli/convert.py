"""``headrace convert``: a model in another form, in files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from tqdm import tqdm

from headrace.cli import console
from headrace.core.errors import ConfigError

_TARGETS = ("hf", "int8", "int4", "gguf", "packed")
_DTYPES = ("auto", "float32", "bfloat16", "float16")


def convert(
    model: Annotated[str, typer.Argument(help="Built-in name, folder, .gguf file or hub id.")],
    out: Annotated[Path, typer.Argument(help="A new folder; with gguf, a file.")],
    *,
    to: Annotated[str, typer.Option(help="hf, int8, int4, gguf or packed.")],
    dtype: Annotated[
        str, typer.Option(help="hf, packed: of floats. auto: as stored, float32 where that is fewer bits.")
    ] = "auto",
    form: Annotated[str, typer.Option(help="gguf: of matrices: Q8_0, Q4_0, F16, BF16 or F32.")] = "Q8_0",
    quantization: Annotated[
        str | None, typer.Option(help="packed: int8, int4, gguf or none, as the model will be started.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Compute threads.")] = None,
) -> None:
    """Write a model in another form: a folder of floats (hf), of int8 or int4, a GGUF file, or packed weights.

    int8 and int4 hold what loading with --quantization int8 or int4 makes, bit for bit; so do gguf's Q8_0 and Q4_0.
    packed is what --build-cache keeps, for this machine and these settings.
    """
    if to not in _TARGETS:
        raise ConfigError(f"--to {to}: there are {', '.join(_TARGETS)}")
    if dtype not in _DTYPES:
        raise ConfigError(f"--dtype {dtype}: there are {', '.join(_DTYPES)}")
    for name, value, default, targets in (
        ("--dtype", dtype, "auto", ("hf", "packed")),
        ("--form", form, "Q8_0", ("gguf",)),
        ("--quantization", quantization, None, ("packed",)),
    ):
        if value != default and to not in targets:
            raise ConfigError(f"{name} is for --to {' and '.join(targets)}; leave it out with --to {to}")
    if to == "packed":
        _pack(model, out, dtype, quantization, threads)
    else:
        _write(model, out, to, dtype, form, threads)


def _write(model: str, out: Path, to: str, dtype: str, form: str, threads: int | None) -> None:
    import torch

    from headrace.convert.folder import write_folder
    from headrace.convert.gguf_file import write_gguf
    from headrace.core.cgroup import usable_cpus
    from headrace.ops.native import core
    from headrace.weights.checkpoint import open_checkpoint
    from headrace.weights.resolve import resolve_model

    core.set_threads(threads or usable_cpus())
    torch.set_num_threads(threads or usable_cpus())
    checkpoint = open_checkpoint(resolve_model(model, on_note=console.note).path)
    total = sum(torch.Size(checkpoint.shape(name)).numel() for name in checkpoint.names())
    try:
        with tqdm(total=total, desc=f"convert to {to}", unit=" weights", unit_scale=True, leave=False) as bar:
            if to == "gguf":
                write_gguf(checkpoint, out, form, bar.update)
            else:
                mode = None if to == "hf" else to
                write_folder(checkpoint, out, mode, None if dtype == "auto" else getattr(torch, dtype), bar.update)
    finally:
        checkpoint.close()
    files = [out] if out.is_file() else sorted(out.rglob("*"))
    n_bytes = sum(file.stat().st_size for file in files if file.is_file())
    use = f"--quantization gguf keeps its {form} as they are: " if to == "gguf" and form in ("Q8_0", "Q4_0") else ""
    console.note(f"{out}: {console.size(n_bytes)}; {use}headrace chat {out}{' --quantization gguf' if use else ''}")


def _pack(model: str, out: Path, dtype: str, quantization: str | None, threads: int | None) -> None:
    from headrace.core.config import BuildCacheConfig
    from headrace.llm import LLM

    arguments: dict[str, Any] = {} if quantization is None else {"quant_config": {"quant_algo": quantization}}
    cache = BuildCacheConfig(cache_root=out)
    with LLM(
        model, dtype=dtype, skip_tokenizer_init=True, num_threads=threads, enable_build_cache=cache,
        kv_cache_config={"max_tokens": 1024}, **arguments,
    ):  # fmt: skip
        pass
    found = sorted(out.glob("*.packed"))
    if not found:
        raise ConfigError(f"{out}: nothing could be written; the log says why")
    console.note(
        f"{out}: {console.size(sum(file.stat().st_size for file in found))}; start with the same model, dtype and"
        f" quantization, and --set enable_build_cache.cache_root={out}"
    )
