"""``headrace plan``: what a model takes in memory, without its weights."""

from __future__ import annotations

import dataclasses
import json as json_module
from pathlib import Path
from typing import Annotated, Any

import typer

from headrace.cli import console
from headrace.core.errors import ConfigError, ModelError


def plan_command(
    model: Annotated[
        str | None, typer.Argument(help="A folder, config.json, .gguf file, built-in name, or published model.")
    ] = None,
    *,
    tokens: Annotated[
        str, typer.Option(help="Lengths of sequences that the cache is planned for.")
    ] = "1024,8192,32768",
    json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
) -> None:
    """Show a model's weights and cache in bytes for each precision. Only its configuration is read.

    Without a model: the published ones whose configurations come along.
    """
    from headrace.eval.plan import plan
    from headrace.models.published import PUBLISHED

    if model is None:
        _list(PUBLISHED, json=json)
        return
    planned = plan(_configuration(model), _lengths(tokens))
    if json:
        console.print_json(dataclasses.asdict(planned))
        return
    out = console.out()
    sizes = f"{planned.n_params / 1e9:,.2f} billion parameters in {planned.n_tensors:,} tensors"
    out.print(f"{planned.architecture}: {sizes}, {planned.max_positions:,} positions", "")
    out.print(_weights_table(planned), "")
    out.print(_cache_table(planned))


def _configuration(model: str) -> dict[str, Any]:
    """Its fields, without a word on how its file packs the weights. Raises ModelError, ConfigError."""
    from headrace.models.published import PUBLISHED, published
    from headrace.weights.builtin import BUILTIN
    from headrace.weights.checkpoint import open_checkpoint
    from headrace.weights.resolve import resolve_model

    path = Path(model).expanduser()
    if path.is_dir() and (path / "config.json").is_file():
        path = path / "config.json"
    if path.is_file() and path.suffix == ".json":
        config = _read(path)
        packed = config.pop("quantization_config", None)
        if packed:
            console.note(f"the file packs its weights ({packed.get('quant_method')}); the plan is for other forms too")
        return config
    if path.exists() or model in BUILTIN:
        checkpoint = open_checkpoint(resolve_model(model, on_note=console.note).path)
        config = checkpoint.config()
        checkpoint.close()
        return config
    if "/" in model:
        raise ConfigError(f"{model}: there is no such path, and plan looks nothing up on a hub; give it a config.json")
    if model.lower() not in {name.lower() for name in PUBLISHED}:
        raise ConfigError(f"{model}: no path, no built-in name ({', '.join(BUILTIN)}) and no published model; of those"
                          f" there are {', '.join(PUBLISHED)}")  # fmt: skip
    return published(model)


def _read(path: Path) -> dict[str, Any]:
    try:
        config = json_module.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: {error}") from None
    if not isinstance(config, dict):
        raise ModelError(f"{path}: expected an object, as in a model's config.json")
    return config


def _lengths(tokens: str) -> list[int]:
    try:
        lengths = [int(part) for part in tokens.split(",")]
    except ValueError:
        lengths = []
    if not lengths or min(lengths) < 1:
        raise ConfigError(f"--tokens {tokens!r}: give lengths of at least 1, as in 1024,8192")
    return lengths


def _list(known: dict[str, dict[str, Any]], *, json: bool) -> None:
    if json:
        console.print_json(list(known))
        return
    table = console.table("published model", "architecture", title="Models whose configurations come along")
    for name, config in known.items():
        table.add_row(name, config["architectures"][0])
    console.out().print(table)


def _weights_table(planned: Any) -> Any:
    table = console.table("precision", "weights", "read by a step of one sequence", title="Weights")
    for one in planned.weights:
        table.add_row(one.precision, console.size(one.nbytes), console.size(one.step_nbytes))
    return table


def _cache_table(planned: Any) -> Any:
    """Twice as much in float32, but for states, which are in float32 always."""
    columns = [f"{length:,} tokens" for length in planned.lengths]
    table = console.table(
        "layers", "each keeps", *columns, title="Cache of a sequence in bfloat16: held + left for reuse by others"
    )
    for one in planned.layers:
        sizes = (
            f"{console.size(held)} + {console.size(max(0, kept - held))}"
            for held, kept in zip(one.held, one.reusable, strict=True)
        )
        table.add_row(str(one.n_layers), one.keeps, *sizes)
    if not planned.layers:
        table.add_row("-", "nothing: an encoder")
    return table
