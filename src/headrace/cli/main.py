"""The ``headrace`` command: its sub-commands, and how errors end it.

Exit status: 0 done, 1 the engine failed, 2 something that was given is wrong, 130 interrupted.
"""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from headrace.cli import console
from headrace.cli.bench import bench
from headrace.cli.chat import chat
from headrace.cli.convert import convert
from headrace.cli.doctor import doctor
from headrace.cli.eval_kl import eval_kl
from headrace.cli.eval_parity import eval_parity
from headrace.cli.features import features
from headrace.cli.generate import generate
from headrace.cli.plan import plan_command
from headrace.cli.serve import serve
from headrace.cli.train_draft import train_draft
from headrace.cli.verify import verify_command
from headrace.core.errors import EngineError, HeadraceError


class Commands(TyperGroup):
    """Turns headrace's errors and Ctrl-C into an exit status, and shows a traceback only when asked to."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except HeadraceError as error:
            if ctx.params.get("debug"):
                raise
            console.error(str(error))
            raise typer.Exit(1 if isinstance(error, EngineError) else 2) from None
        except KeyboardInterrupt:
            console.note("interrupted")
            raise typer.Exit(130) from None


app = typer.Typer(
    name="headrace",
    cls=Commands,
    help="An LLM inference engine for plain CPU machines first.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    # --max_batch_size is --max-batch-size: both spellings are about.
    context_settings={
        "help_option_names": ["-h", "--help"],
        "token_normalize_func": lambda name: name.replace("_", "-"),
    },
)


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        print(f"headrace {version('headrace')}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Options before the command."""


evaluate = typer.Typer(name="eval", help="Measure what a model's answers are worth.", no_args_is_help=True)
evaluate.command("kl")(eval_kl)
evaluate.command("parity")(eval_parity)

app.command()(generate)
app.command()(chat)
app.command()(serve)
app.add_typer(bench)
app.command("verify")(verify_command)
app.add_typer(evaluate)
app.command("train-draft")(train_draft)
app.command()(convert)
app.command()(features)
app.command("plan")(plan_command)
app.command()(doctor)
