"""What the README shows is run as it stands there."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys

import pytest

from headrace.cli.main import app
from project import ROOT

README = (ROOT / "README.md").read_text()


@pytest.mark.real
def test_the_python_example_runs() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("The capital of France is Paris.") == 2
    assert "'drafts_accepted'" in done.stdout


def test_the_command_lines_name_commands_and_options_that_exist() -> None:
    blocks = "\n".join(re.findall(r"```\n(.*?)```", README, flags=re.DOTALL))
    lines = re.findall(r"^headrace (.+?)(?:  +#.*)?$", blocks, flags=re.MULTILINE)
    assert len(lines) >= 5
    from typer.main import get_command

    top = get_command(app)
    for line in lines:
        words = shlex.split(line)
        command = top.commands[words.pop(0)]
        while hasattr(command, "commands"):
            command = command.commands[words.pop(0)]
        known = {flag for option in command.params for flag in (*option.opts, *option.secondary_opts)}
        assert {word for word in words if word.startswith("--")} <= known, line


def test_the_two_commands_are_targets_of_the_makefile() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make ([\w-]+)", README + (ROOT / "CONTRIBUTING.md").read_text(), flags=re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target
