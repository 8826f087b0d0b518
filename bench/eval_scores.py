"""Scores of lm-eval over HTTP, beside those of its own transformers model on the same weights.

    pip install "lm_eval[api,hf]"     # 0.4.13 or newer: 650 MB with what it needs, so no dependency of the tests
    python bench/eval_scores.py [--model smollm2] [--json]

Starts ``headrace serve`` and runs the task of ``bench/eval_tasks`` through lm-eval's ``local-completions`` (its log
likelihoods come from ``echo`` and ``logprobs``); then writes the same weights, dequantised, to a folder, and runs the
task through lm-eval's ``hf`` model on that. Exits with 1 if an accuracy or a choice differs, or a log likelihood by
more than the limit.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from headrace.tokenizer.load import load_tokenizer
from headrace.weights.checkpoint import open_checkpoint
from headrace.weights.dummy import write_safetensors
from headrace.weights.resolve import resolve_model

TASKS = Path(__file__).with_name("eval_tasks")
TASK = "everyday"
LIMIT = 2e-4
"""Of the sum of an answer's logprobs. Both sides compute in fp32, in different orders."""


@dataclass(frozen=True, slots=True)
class Scores:
    """What one engine got."""

    acc: float
    acc_norm: float
    answers: list[list[tuple[float, bool]]]
    """[question][choice]: log likelihood, and whether every token of it is the likeliest."""


@contextmanager
def served(model: str) -> Iterator[str]:
    """``headrace serve`` in a process of its own; its address."""
    command = [sys.executable, "-m", "headrace.cli.entry", "serve", model, "--port", "0", "--served-model-name", "it"]
    with subprocess.Popen([*command, "--dtype", "float32"], stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            said = []
            for line in process.stderr:
                said.append(line)
                if found := re.search(r"http://\S+", line):
                    yield found.group()
                    return
            raise SystemExit(f"the server did not start: {''.join(said)}")
        finally:
            process.terminate()


def write_folder(model: str, folder: Path) -> None:
    """The weights and the tokenizer as transformers reads them, in fp32."""
    path = resolve_model(model).path
    checkpoint = open_checkpoint(path)
    tensors = {name: checkpoint.tensor(name).float() for name in checkpoint.names()}
    write_safetensors(folder, checkpoint.config() | {"dtype": "float32"}, tensors)
    checkpoint.close()
    tokenizer = load_tokenizer(path)
    tokenizer.backend.save(str(folder / "tokenizer.json"))
    fields = {"tokenizer_class": "PreTrainedTokenizerFast", **tokenizer.special_tokens}
    (folder / "tokenizer_config.json").write_text(json.dumps(fields))


def score(kind: str, arguments: dict[str, Any]) -> Scores:
    """One run of lm-eval. ``kind``: its name of the model class."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(TASKS), include_defaults=False)
    # The data file is named relative to the task.
    os.chdir(TASKS)
    found = simple_evaluate(
        model=kind, model_args=arguments, tasks=[TASK], task_manager=manager, batch_size=4, bootstrap_iters=0
    )
    results, samples = found["results"][TASK], sorted(found["samples"][TASK], key=lambda sample: sample["doc_id"])
    answers = [[(float(value), bool(greedy)) for value, greedy in sample["filtered_resps"]] for sample in samples]
    return Scores(results["acc,none"], results["acc_norm,none"], answers)


def compare(model: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        write_folder(model, folder)
        with served(model) as url:
            over_http = {"model": "it", "base_url": f"{url}/v1/completions", "tokenizer": str(folder)}
            ours = score("local-completions", {**over_http, "tokenizer_backend": "huggingface", "num_concurrent": 4})
        theirs = score("hf", {"pretrained": str(folder), "dtype": "float32", "device": "cpu"})
    pairs = [
        (mine, other)
        for question, asked in zip(ours.answers, theirs.answers, strict=True)
        for mine, other in zip(question, asked, strict=True)
    ]
    return {
        "model": model,
        "questions": len(ours.answers),
        "log_likelihoods": len(pairs),
        "headrace": asdict(ours),
        "transformers": asdict(theirs),
        "largest_difference": max(abs(mine[0] - other[0]) for mine, other in pairs),
        "greedy": sum(other[1] for _, other in pairs),
        "greedy_differs": sum(mine[1] != other[1] for mine, other in pairs),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--json", action="store_true", help="the whole report, every log likelihood in it")
    options = parser.parse_args()
    os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    report = compare(options.model)
    if options.json:
        print(json.dumps(report))
    else:
        for name in ("headrace", "transformers"):
            print(f"{name:12}  acc {report[name]['acc']:.4f}  acc_norm {report[name]['acc_norm']:.4f}")
        print(
            f"{report['log_likelihoods']} log likelihoods of {report['questions']} questions: "
            f"largest difference {report['largest_difference']:.2e}; {report['greedy']} are greedy, "
            f"{report['greedy_differs']} on one side only"
        )
    scores = [(report[name]["acc"], report[name]["acc_norm"]) for name in ("headrace", "transformers")]
    if scores[0] != scores[1] or report["greedy_differs"] or not report["largest_difference"] <= LIMIT:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
