"""``headrace doctor``: what this machine offers, what the engine makes of it, and what would be faster."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from headrace.bench.machine import ISA_FLAGS, Machine, read_bandwidth, read_machine
from headrace.cli import console
from headrace.core.errors import ConfigError

OPTIONAL_PACKAGES: dict[str, str] = {
    "transformers": "tokenizers of models without a tokenizer.json; the parity tests compare with it",
    "gguf": "the tests compare GGUF files with it",
    "openai": "the tests of the server talk through it",
    "pytest": "the test suite",
}
"""Packages the engine does without, and what each brings."""

ISA_BRINGS: dict[str, str] = {
    "avx2": "8 floats an instruction; the least that the native core runs on",
    "avx512f": "16 floats an instruction",
    "avx512_vnni": "int8 products with sums",
    "avx512_bf16": "bfloat16 products with sums",
    "amx_bf16": "tiles of bfloat16: prompts",
    "amx_int8": "tiles of int8: prompts",
    "asimd": "4 floats an instruction; the least that the native core runs on",
    "asimddp": "int8 products with sums",
    "bf16": "bfloat16 products with sums",
    "i8mm": "int8 matrix products: prompts",
    "sve": "wider vectors on some machines",
}
"""Instruction sets by flag, and what a machine that has one can do."""

FEW_FILES = 4096
"""Below this many open files a busy server runs into the limit: one for each connection, and some of its own."""


@dataclass(frozen=True, slots=True)
class Native:
    """The native core, as it would be used now."""

    level: str | None
    """Instruction set level in use; None: there is no core, or none that runs here."""
    built: tuple[str, ...]
    missing: str
    """Why there is none; empty when there is one."""
    operators: dict[str, str]
    """Operator name -> implementation that a model gets."""


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that doctor prints. Bandwidth in bytes a second, by number of threads."""

    machine: Machine
    memory_available: int
    bandwidth: dict[int, float]
    torch: dict[str, Any] | None
    native: Native | None
    """None without torch."""
    packages: dict[str, str | None]
    """Version, or None where it is not installed."""
    model_file: str | None
    """The built-in model in the cache."""
    advice: tuple[str, ...]


def doctor(
    json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    measure: Annotated[bool, typer.Option(help="Measure the memory bandwidth (about a second).")] = True,
) -> None:
    """Look at this machine: CPU, limits, memory bandwidth, packages, and what would be faster."""
    report = examine(measure=measure)
    if json:
        console.print_json(dataclasses.asdict(report))
    else:
        _print(report)


def examine(*, measure: bool) -> Report:
    """Reads the facts, and measures the bandwidth with one thread and with all that the process may use."""
    from headrace.runner.memory import available_bytes

    machine = read_machine()
    bandwidth = {n: read_bandwidth(n) for n in sorted({1, machine.allowed_cpus})} if measure else {}
    torch = _torch_facts()
    native = None if torch is None else _native_facts()
    packages = {name: _version(name) for name in OPTIONAL_PACKAGES}
    return Report(
        machine=machine,
        memory_available=available_bytes(),
        bandwidth=bandwidth,
        torch=torch,
        native=native,
        packages=packages,
        model_file=_built_in_model(),
        advice=tuple(advice(machine, torch, native)),
    )


def advice(machine: Machine, torch: dict[str, Any] | None, native: Native | None) -> list[str]:
    """What to change, most telling first. Says only what follows from the facts."""
    found = []
    if torch is None:
        found.append("torch is not installed: the engine cannot run. Run `make install`.")
    if native is not None and native.level is None:
        found.append(
            f"There is no native core ({native.missing}): everything is computed by torch's reference operators."
        )
    quota = machine.quota_cpus
    if quota is not None and quota < machine.allowed_cpus:
        found.append(
            f"The control group grants {quota:g} CPUs but {machine.allowed_cpus} are visible: threads beyond the"
            f" grant get paused in the middle of a step. Pass --threads {max(1, int(quota))}, or raise the quota."
        )
    if machine.allowed_cpus < machine.cpus:
        found.append(
            f"This process may use {machine.allowed_cpus} of {machine.cpus} CPUs (affinity mask). Widen it for more."
        )
    if machine.huge_pages == "never":
        found.append("Transparent huge pages are off: with madvise, weights would need fewer page-table walks.")
    if machine.memory_limit is not None and machine.memory_limit < machine.memory // 2:
        limit, memory = console.size(machine.memory_limit), console.size(machine.memory)
        found.append(f"The control group allows {limit} of {memory}: model and KV cache must fit that.")
    if machine.open_files is not None and machine.open_files < FEW_FILES:
        found.append(
            f"This process may have {machine.open_files} files open, and a server needs one for each client: raise it"
            f" with `ulimit -n {FEW_FILES}` or more before `headrace serve` if there are many."
        )
    slow = [] if native is None else [name for name, chosen in native.operators.items() if chosen == "reference"]
    if native is not None and native.level is not None and slow:
        found.append(
            f"{len(slow)} of {len(native.operators)} operators are still torch's reference implementations, which are"
            f" slow: {', '.join(slow)}."
        )
    found.append(
        "A step reads the weights once for all its requests, so several at a time cost little more than one: give"
        " prompts together."
    )
    return found


def _torch_facts() -> dict[str, Any] | None:
    if importlib.util.find_spec("torch") is None:
        return None
    import torch

    return {
        "version": torch.__version__,
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "mkldnn": torch.backends.mkldnn.is_available(),
        "cuda": torch.cuda.is_available(),
    }


def _native_facts() -> Native:
    import torch

    from headrace.ops.table import select_ops

    try:
        from headrace.ops.native import core
    except ConfigError as error:
        # A level was forced that this machine has not: no model starts.
        return Native(None, (), str(error), {})
    operators = dict(select_ops("cpu", torch.bfloat16).chosen)
    if not core.is_available():
        return Native(None, (), core.reason(), operators)
    module = core.native()
    return Native(module.level(), tuple(module.built_levels()), "", operators)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _built_in_model() -> str | None:
    from headrace.weights.resolve import cached_builtin

    path = cached_builtin("smollm2")
    return str(path) if path is not None else None


def _print(report: Report) -> None:
    out = console.out()
    table = console.table("", "")
    table.show_header = False
    for name, value in (*_machine_rows(report.machine), *_report_rows(report)):
        table.add_row(name, value)
    out.print(table)
    packages = console.table("package", "version", "what it brings")
    for name, version in report.packages.items():
        packages.add_row(name, version or "missing", OPTIONAL_PACKAGES[name])
    out.print()
    out.print(packages)
    out.print("\nWhat would be faster", style="bold")
    for line in report.advice:
        out.print(f"- {line}")


def _machine_rows(machine: Machine) -> list[tuple[str, str]]:
    present = [ISA_FLAGS[flag] for flag, there in machine.isa.items() if there]
    absent = [f"{ISA_FLAGS[flag]} ({ISA_BRINGS[flag]})" for flag, there in machine.isa.items() if not there]
    quota = "no quota" if machine.quota_cpus is None else f"quota of {machine.quota_cpus:g}"
    limit = "no limit" if machine.memory_limit is None else f"limit {console.size(machine.memory_limit)}"
    return [
        ("CPU", f"{machine.cpu} ({machine.architecture})"),
        ("instruction sets", ", ".join(present) or "none of those that matter"),
        ("  not here", ", ".join(absent) or "-"),
        ("CPUs", f"{machine.allowed_cpus} of {machine.cpus} allowed, {quota}"),
        ("memory", f"{console.size(machine.memory)}, {limit}"),
        ("huge pages", machine.huge_pages or "not known"),
        ("open files", "no limit" if machine.open_files is None else f"{machine.open_files:,}"),
    ]


def _native_row(native: Native | None) -> str:
    if native is None or native.level is None:
        return f"missing: {native.missing}" if native else "missing"
    of_core = sum(chosen != "reference" for chosen in native.operators.values())
    return f"{native.level} (built: {', '.join(native.built)}), {of_core} of {len(native.operators)} operators"


def _report_rows(report: Report) -> list[tuple[str, str]]:
    speeds = [f"{n} thread{'s' * (n > 1)} {speed / 1e9:.1f} GB/s" for n, speed in report.bandwidth.items()]
    torch = report.torch
    return [
        ("memory available", console.size(report.memory_available)),
        ("read bandwidth", ", ".join(speeds) or "not measured"),
        ("torch", f"{torch['version']}, {torch['threads']} threads, {torch['capability']}" if torch else "missing"),
        ("native core", _native_row(report.native)),
        ("built-in model", report.model_file or "not fetched yet; `headrace generate` fetches it once"),
    ]
