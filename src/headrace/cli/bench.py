"""``headrace bench``: how fast a model runs here, next to how fast it could."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import Progress, TextColumn

from headrace.bench.load import Timing, random_prompts, run_load
from headrace.bench.machine import read_bandwidth, read_machine
from headrace.bench.report import Report, summarise
from headrace.bench.roofline import Roofline
from headrace.cli import console
from headrace.cli.bench_parts import Json, Model, OutputLen, PromptFile, PromptLen, Seed, report_rows, report_table
from headrace.cli.bench_serve import bench_serve
from headrace.cli.options import DEFAULT_MODEL, with_engine_options
from headrace.cli.prompts import read_prompts
from headrace.cli.start import started
from headrace.core.clock import Clock, SystemClock
from headrace.core.errors import RequestError
from headrace.core.sampling_params import SamplingParams

if TYPE_CHECKING:
    from headrace.llm import LLM

bench = typer.Typer(name="bench", help="Measure a model on this machine, or a server.", no_args_is_help=True)


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """What is sent."""

    requests: int
    concurrency: int
    prompt_len: int
    output_len: int
    prompt_file: Path | None
    seed: int


@with_engine_options
def throughput(
    model: Model = DEFAULT_MODEL,
    *,
    requests: Annotated[int, typer.Option(min=1, help="Requests in all.")] = 16,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests at a time.")] = 8,
    prompt_len: PromptLen = 128,
    output_len: OutputLen = 64,
    prompt_file: PromptFile = None,
    seed: Seed = 0,
    json: Json = False,
    engine: dict[str, Any],
) -> None:
    """Several requests at a time: tokens a second in all."""
    _run(model, Plan(requests, concurrency, prompt_len, output_len, prompt_file, seed), engine, as_json=json)


@with_engine_options
def latency(
    model: Model = DEFAULT_MODEL,
    *,
    requests: Annotated[int, typer.Option(min=1, help="Requests in all.")] = 5,
    prompt_len: PromptLen = 128,
    output_len: OutputLen = 64,
    prompt_file: PromptFile = None,
    seed: Seed = 0,
    json: Json = False,
    engine: dict[str, Any],
) -> None:
    """One request at a time: time to the first token, and between tokens."""
    _run(model, Plan(requests, 1, prompt_len, output_len, prompt_file, seed), engine, as_json=json)


bench.command()(throughput)
bench.command()(latency)
bench.command("serve")(bench_serve)


def _run(model: str, plan: Plan, engine: dict[str, Any], *, as_json: bool) -> None:
    clock = SystemClock()
    machine = read_machine()
    # Before the model is there, so that the two do not compete for memory or threads.
    bandwidth = read_bandwidth(machine.allowed_cpus)
    with started(model, engine, quiet=False, clock=clock) as llm:
        config = llm.effective_config
        prompts = _prompts(llm, plan)
        params = SamplingParams(max_tokens=plan.output_len, ignore_eos=True, detokenize=False)
        # One request first: the first step takes pages and lets torch choose its kernels.
        warm_up = random_prompts(1, min(plan.prompt_len, 32), _vocab_size(llm), plan.seed + 1)
        run_load(llm, warm_up, params, concurrency=1, clock=clock, on_done=lambda _: None)
        timings = _measured(llm, prompts, params, plan.concurrency, clock)
        weights, kv_cache = (dict(llm.memory_report)[name] for name in ("weights", "KV cache"))
        experts = config["expert_bytes"], config["expert_share"]
        roofline = Roofline(bandwidth, weights, kv_cache / config["kv_cache_tokens"], *experts)
    report = summarise(timings, plan.concurrency)
    if as_json:
        console.print_json(_document(model, config, machine, report, roofline))
    else:
        _print(report, roofline)


def _prompts(llm: LLM, plan: Plan) -> list[list[int]]:
    if plan.prompt_file is None:
        return random_prompts(plan.requests, plan.prompt_len, _vocab_size(llm), plan.seed)
    if llm.tokenizer is None:
        raise RequestError("--prompt-file needs a tokenizer, and the model was loaded without one")
    texts = [prompt.text for prompt in read_prompts([], plan.prompt_file)]
    return [llm.tokenizer.encode(texts[index % len(texts)]) for index in range(plan.requests)]


def _vocab_size(llm: LLM) -> int:
    if llm.tokenizer is None:
        raise RequestError("random prompts are drawn from the tokenizer's vocabulary: leave skip_tokenizer_init out")
    return llm.tokenizer.vocab_size


def _measured(
    llm: LLM, prompts: list[list[int]], params: SamplingParams, concurrency: int, clock: Clock
) -> list[Timing]:
    with Progress(*Progress.get_default_columns(), TextColumn("{task.fields[rate]}"), console=console.err()) as bar:
        task = bar.add_task("requests", total=len(prompts), rate="")
        begin = clock.now()
        tokens = 0

        def advance(timing: Timing) -> None:
            nonlocal tokens
            tokens += timing.n_output
            bar.update(task, advance=1, rate=f"{tokens / (clock.now() - begin):.1f} tokens/s")

        return run_load(llm, prompts, params, concurrency=concurrency, clock=clock, on_done=advance)


def _mean_context(report: Report) -> float:
    """Tokens of context a decode step sees of a sequence, on average: the prompt and half of the output."""
    return (report.prompt_tokens + report.output_tokens / 2) / report.requests


def _running(report: Report) -> int:
    return min(report.concurrency, report.requests)


def _document(model: str, config: dict[str, Any], machine: Any, report: Report, roofline: Roofline) -> dict[str, Any]:
    sequences, context = _running(report), _mean_context(report)
    return {
        "model": model,
        "config": config,
        "machine": dataclasses.asdict(machine),
        "report": dataclasses.asdict(report),
        "roofline": dataclasses.asdict(roofline)
        | {
            "step_bytes": roofline.step_bytes(sequences, context),
            "tokens_per_second": roofline.tokens_per_second(sequences, context),
        },
    }


def _print(report: Report, roofline: Roofline) -> None:
    out = console.out()
    table = report_table(report_rows(report))
    sequences, context = _running(report), _mean_context(report)
    limit = roofline.tokens_per_second(sequences, context)
    reached = report.decode_rate * sequences / limit
    weights = roofline.weight_bytes(sequences)
    table.add_row("roofline", f"{limit:.0f} tokens/s", f"{reached:.0%} reached while decoding")
    out.print(table)
    console.note(
        f"roofline: {sequences} tokens a step, each step reads {console.size(int(weights))} of weights and"
        f" {console.size(int(roofline.step_bytes(sequences, context) - weights))} of KV cache"
        f" (context {context:.0f}), at {roofline.bandwidth / 1e9:.1f} GB/s measured here"
    )
