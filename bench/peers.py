"""Engines side by side: tables and a plot from timings of servers on the same work, against the machine's limits.

    python bench/peers.py --limits limits.json --plot docs/performance.png A.json B.json

A timing file holds ``{"meta": {"model": "A", ...}, "results": {engine: {workload: [run, ...]}}}``; a run has the rates
in ``RATES`` below. The engine called headrace is held against the others and against the bound of model and precision:
a decode step reads every weight and every live key and value once, and does 2 operations a weight and row; a prefill
does the same for its rows, and causal attention. Models A and B are described in ``MODELS``. The plot wants matplotlib.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

OURS = "headrace"
BYTES = {"bf16": 2.0, "int8": 1.0625, "int4": 0.5625}
"""Of a weight, scales included."""
RATES = {
    "W1": "decode_tok_s",
    "W2": "prefill_tok_s",
    "W2 decode": "decode_tok_s",
    "W3@8": "out_tok_s",
    "W3@32": "out_tok_s",
}
TITLES = {
    "W1": "one stream",
    "W2": "prefill of 2,048",
    "W2 decode": "decode at 2,048",
    "W3@8": "8 streams",
    "W3@32": "32 streams",
}


@dataclass(frozen=True, slots=True)
class Shape:
    """A dense decoder with tied embeddings."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    inner: int
    vocab: int
    times: float
    """How many times the fastest peer's decode rate is asked of one stream."""
    prefill_times: float

    @property
    def body(self) -> int:
        """Weights of the blocks."""
        attention = self.hidden * (2 * self.heads + 2 * self.kv_heads) * self.head_dim
        return self.layers * (attention + 3 * self.hidden * self.inner)

    @property
    def kv_bytes(self) -> int:
        """Of one token, in bfloat16."""
        return self.layers * 2 * self.kv_heads * self.head_dim * 2


MODELS = {
    "A": Shape(30, 576, 9, 3, 64, 1536, 49_152, 1.5, 2.0),  # SmolLM2-135M
    "B": Shape(28, 1024, 16, 8, 128, 3072, 151_936, 1.3, 1.6),  # the shape of Qwen3-0.6B
}


@dataclass(frozen=True, slots=True)
class Limits:
    read: Mapping[int, float]
    """Bytes a second by megabytes walked."""
    peak: Mapping[str, float]
    """Operations a second by precision."""

    def step(self, shape: Shape, precision: str, rows: int, context: int) -> float:
        """Seconds of a decode step at least."""
        weights = shape.body + shape.vocab * shape.hidden
        n_bytes = weights * BYTES[precision] + rows * context * shape.kv_bytes
        return max(n_bytes / self._bandwidth(n_bytes), 2 * weights * rows / self._peak(precision))

    def prefill(self, shape: Shape, precision: str, rows: int) -> float:
        """Seconds of a prompt at least."""
        attention = shape.layers * 4 * shape.heads * shape.head_dim * rows * rows / 2
        n_bytes = shape.body * BYTES[precision]
        products = 2 * shape.body * rows / self._peak(precision) + attention / self.peak["bf16"]
        return max(products, n_bytes / self._bandwidth(n_bytes))

    def rate(self, shape: Shape, precision: str, workload: str) -> float:
        """Tokens a second of a workload at most."""
        if workload == "W1":
            return 1 / self.step(shape, precision, 1, 192)
        if workload == "W2":
            return 2048 / self.prefill(shape, precision, 2048)
        if workload == "W2 decode":
            return 1 / self.step(shape, precision, 1, 2080)
        streams = int(workload.partition("@")[2])
        decode = 128 * (32 / streams) * self.step(shape, precision, streams, 320)
        return 32 * 128 / (32 * self.prefill(shape, precision, 256) + decode)

    def _peak(self, precision: str) -> float:
        # Numbers of 4 bits are multiplied as 8-bit ones.
        return self.peak["bf16" if precision == "bf16" else "int8"]

    def _bandwidth(self, n_bytes: float) -> float:
        return self.read[min(self.read, key=lambda size: abs(size - n_bytes / 1e6))]


def read_limits(path: Path) -> Limits:
    found = json.loads(path.read_text())
    return Limits({int(size): rate for size, rate in found["read"].items()}, found["peak"])


def precision(engine: str) -> str:
    name = engine.lower()
    return "int4" if "int4" in name or "q4" in name else "int8" if "int8" in name or "q8" in name else "bf16"


def median(results: Mapping[str, Any], engine: str, workload: str, key: str) -> float | None:
    runs = results[engine].get(workload.partition(" ")[0], [])
    values = [run[key] for run in runs if run.get(key) is not None]
    return statistics.median(values) if values else None


def must(shape: Shape, workload: str, peer: float | None, bound: float) -> float:
    """The rate that is asked for: some times the fastest peer's, or a share of the bound, whichever is less."""
    times = {"W1": shape.times, "W2": shape.prefill_times}.get(workload, 2.0)
    share = (0.75 if workload == "W1" else 0.65) * bound
    return share if peer is None else min(times * peer, share)


def verdicts(model: str, results: Mapping[str, Any], limits: Limits) -> list[str]:
    """A table of what is asked and what is reached, for each precision that headrace ran at."""
    shape = MODELS[model]
    lines = [
        "| workload | headrace | fastest peer | ratio | share of the bound | asked | reached |",
        "|---|---|---|---|---|---|---|",
    ]
    for ours in (engine for engine in results if engine.startswith(OURS)):
        kind = precision(ours)
        peers = [engine for engine in results if not engine.startswith(OURS) and precision(engine) == kind]
        for workload, key in RATES.items():
            rate = median(results, ours, workload, key)
            if rate is None:
                continue
            rates = {peer: median(results, peer, workload, key) for peer in peers}
            best = max((peer for peer in peers if rates[peer]), key=lambda peer: rates[peer] or 0, default=None)
            bound = limits.rate(shape, kind, workload)
            asked = must(shape, workload, rates[best] if best else None, bound)
            against = f"{rates[best]:.0f} ({best}) | {rate / rates[best]:.2f}" if best else "- | -"  # type: ignore[operator]
            lines.append(
                f"| {TITLES[workload]}, {kind} | {rate:.0f} | {against} | {rate / bound:.0%} | {asked:.0f} |"
                f" {'yes' if rate >= asked else 'no'} |"
            )
    return lines


def everything(results: Mapping[str, Any]) -> list[str]:
    """Medians of all engines."""
    columns = [
        *TITLES.values(),
        "32 streams, p99 between tokens, ms",
        "shared prefix, s",
        "first token, s",
        "memory, MB",
    ]
    lines = ["| engine | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    more = (("W3@32", "itl_p99_ms"), ("W4", "wall_s"), ("W5", "first_token_s"), ("W5", "rss_end_mb"))
    for engine in results:
        values = [median(results, engine, workload, key) for workload, key in (*RATES.items(), *more)]
        lines.append(f"| {engine} | " + " | ".join(_figure(value) for value in values) + " |")
    return lines


def _figure(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def plot(path: Path, found: Mapping[str, Mapping[str, Any]], limits: Limits) -> None:
    """One row of panels a model: tokens a second by engine, with the bound as a line."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(
        len(found), len(RATES), figsize=(3.1 * len(RATES), 2.9 * len(found)), squeeze=False
    )
    for row, (model, results) in zip(panels, found.items(), strict=True):
        for panel, (workload, key) in zip(row, RATES.items(), strict=True):
            rates = {engine: median(results, engine, workload, key) for engine in results}
            there = {engine: rate for engine, rate in sorted(rates.items(), key=lambda pair: pair[1] or 0) if rate}
            if not there:
                panel.set_axis_off()
                continue
            colours = ["#1f6feb" if engine.startswith(OURS) else "#b8bec7" for engine in there]
            bars = panel.barh(list(there), list(there.values()), color=colours)
            panel.bar_label(bars, fmt="%.0f", padding=2, fontsize=8)
            bound = limits.rate(MODELS[model], "bf16", workload)
            panel.axvline(bound, color="#cf222e", linewidth=1, linestyle="--")
            panel.set_xlim(0, 1.12 * max([bound, *there.values()]))
            panel.set_title(f"{model}: {TITLES[workload]}", fontsize=9)
            panel.tick_params(labelsize=8)
            panel.spines[["top", "right"]].set_visible(False)
    figure.suptitle("tokens a second; dashed: what the machine allows in bf16", fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("timings", nargs="+", type=Path)
    parser.add_argument("--limits", type=Path, required=True)
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    limits = read_limits(args.limits)
    found: dict[str, dict[str, Any]] = {}
    for path in args.timings:
        document = json.loads(path.read_text())
        # Several files of a model are one: engines that do not fit into memory together run apart.
        found.setdefault(document["meta"]["model"], {}).update(document["results"])
    for model, results in found.items():
        print("\n".join([f"## Model {model}", "", *verdicts(model, results, limits), "", *everything(results), ""]))
    if args.plot:
        plot(args.plot, found, limits)


if __name__ == "__main__":
    main()
