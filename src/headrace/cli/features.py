"""``headrace features``: what the engine can do, what goes with what, and what is not there."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Annotated, Any, get_args

import typer

from headrace.cli import console
from headrace.core.config import KvCacheConfig, LlmArgs, QuantConfig
from headrace.core.config_base import Config
from headrace.core.features import FEATURES, MISSING_ARGS, MISSING_SAMPLING, Missing


def features(
    model: Annotated[str | None, typer.Argument(help="A model to look at: its architecture and its layers.")] = None,
    *,
    json: Annotated[bool, typer.Option("--json", help="Print the tables as JSON.")] = False,
) -> None:
    """Show what the engine can do, how each feature is turned on, and what it refuses."""
    facts = _model_facts(model) if model is not None else None
    if json:
        refused = (*MISSING_ARGS, *MISSING_SAMPLING)
        console.print_json(
            {
                "model": facts,
                "features": [dataclasses.asdict(row) for row in FEATURES],
                "refused": [dataclasses.asdict(row) for row in refused],
            }
        )
        return
    out = console.out()
    if facts is not None:
        out.print(_facts_table(facts), "")
    out.print(_feature_table(), "")
    out.print(_number_table(), "")
    out.print(_missing_table("Arguments of LLM that this version refuses", MISSING_ARGS), "")
    out.print(_missing_table("Fields of SamplingParams that this version refuses", MISSING_SAMPLING))


def _model_facts(name: str) -> dict[str, Any]:
    """What the configuration says; no weights are read. Raises ``ModelError`` when the model is not supported."""
    import torch

    from headrace.eval.plan import kind
    from headrace.layers.base import BuildContext
    from headrace.media.find import media_processor
    from headrace.models.registry import architecture_of, build_model
    from headrace.ops.table import select_ops
    from headrace.weights.checkpoint import open_checkpoint
    from headrace.weights.quantised import QuantisedCheckpoint
    from headrace.weights.resolve import resolve_model

    path = resolve_model(name, on_note=console.note).path
    checkpoint, media = open_checkpoint(path), media_processor(path)
    config = checkpoint.config()
    stored = {}
    if isinstance(checkpoint, QuantisedCheckpoint):
        stored = checkpoint.kept() | {f"unpacked: {what}": count for what, count in checkpoint.unpacked().items()}
    checkpoint.close()
    device = torch.device("cpu")
    built = build_model(config, BuildContext(select_ops(device, torch.bfloat16), torch.bfloat16, device))
    return {
        "architecture": architecture_of(config),
        "parameters": built.n_params,
        "positions": built.max_positions,
        "vocabulary": built.vocab_size,
        "layers": dict(Counter(kind(spec) for spec in built.cache_specs())),
        "reads": ["text", *(media.kinds if media is not None else ())],
        "gives": f"text and {built.pooling.gives}" if built.pooling.generates else built.pooling.gives,
        "generates": built.pooling.generates,
        "quantised": stored,
    }


def _facts_table(facts: dict[str, Any]) -> Any:
    table = console.table("", "")
    table.show_header = False
    works = "every feature below works with it" if facts["generates"] else "it is encoded only: see docs/pooling.md"
    table.add_row("architecture", f"{facts['architecture']}, supported; {works}")
    table.add_row("reads", " and ".join(facts["reads"]))
    table.add_row("gives", facts["gives"])
    table.add_row("parameters", f"{facts['parameters'] / 1e6:,.0f} million")
    table.add_row("positions", f"{facts['positions']:,}")
    for spec, count in facts["layers"].items():
        table.add_row("layers", f"{count} x {spec}")
    for form, count in facts["quantised"].items():
        table.add_row("stored", f"{count} x {form}")
    return table


def _feature_table() -> Any:
    table = console.table("feature", "default", "turned on by", "counter in get_stats", title="Features")
    for row in FEATURES:
        limits = [f"not with {name}: {reason}" for name, reason in (row.excludes or {}).items()]
        limits += [f"beside {name}, not on it: {reason}" for name, reason in (row.not_on or {}).items()]
        about = "\n".join((row.turned_on_by, *limits))
        table.add_row(row.title, "on" if row.on_by_default else "-", about, row.witness)
    return table


def _number_table() -> Any:
    """What numbers can be kept in, as the settings themselves say it."""
    weights = (*_values(LlmArgs, "dtype"), *_values(QuantConfig, "quant_algo"))
    table = console.table("what", "kept in", "setting", title="Numbers: these change outputs, features do not")
    table.add_row("weights", ", ".join(weights), "dtype, quant_config.quant_algo")
    table.add_row("keys and values", ", ".join(_values(KvCacheConfig, "dtype")), "kv_cache_config.dtype")
    table.add_row("recurrent states", "float32", "-")
    return table


def _values(config: type[Config], name: str) -> tuple[str, ...]:
    """The values that a field can have."""
    return get_args(config.model_fields[name].annotation)


def _missing_table(title: str, rows: tuple[Missing, ...]) -> Any:
    """One line for each reason, with the options it holds for."""
    by_reason: dict[str, list[str]] = {}
    for row in rows:
        by_reason.setdefault(row.reason, []).append(row.option)
    table = console.table("option", "why", title=title)
    for reason, options in by_reason.items():
        table.add_row(", ".join(options), reason)
    return table
