"""The table of commands: each is complete, explains itself, starts fast, and errs in the same form."""

from __future__ import annotations

import argparse
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nemo_probsft import command_line, one_click, sweep
from nemo_probsft.__main__ import COMMANDS, main

ROOT = Path(__file__).resolve().parents[2]
HEAVY = {
    "torch",
    "transformers",
    "nemo",
    "megatron",
    "lightning",
    "nemo_run",
    "vllm",
    "lm_eval",
    "matplotlib",
    "datasets",
}
SUBCOMMANDS = (["data", "prepare"], ["data", "check"], *(["convert", name] for name in ("import", "export", "verify")))
ALL = [*([name] for name in COMMANDS), *SUBCOMMANDS]


def modules_after(code: str) -> set[str]:
    """The modules that a fresh Python has loaded after `code`."""
    code = f"import sys\n{code}\nprint(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(done.stderr.split())


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """It and those of its subcommands."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for each in action.choices.values():
                yield from parsers(each)


def error_line(capsys, *arguments: str) -> str:
    assert main(arguments) == 2
    output = capsys.readouterr()
    assert output.out == ""
    (line,) = output.err.splitlines()
    assert line.startswith("nemo-probsft: ")
    return line.removeprefix("nemo-probsft: ")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_complete_and_explains_every_argument(name):
    module = importlib.import_module(COMMANDS[name][0])
    assert callable(module.run)
    parser = command_line.Parser(prog=name)
    module.add_arguments(parser)
    for each in parsers(parser):
        assert each.description, each.prog
        actions = [action for action in each._actions if not isinstance(action, argparse._SubParsersAction)]
        assert [action.dest for action in actions if not action.help] == []


@pytest.mark.parametrize("command", ALL, ids=" ".join)
def test_help_is_printed_and_names_the_command(capsys, command):
    with pytest.raises(SystemExit) as ended:
        main([*command, "--help"])
    assert ended.value.code == 0
    output = capsys.readouterr()
    assert output.out.startswith(f"usage: nemo-probsft {' '.join(command)} ")
    assert output.err == ""


def test_help_lists_every_command(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if line.startswith("  ") and line.split()[0] in COMMANDS] == list(
        COMMANDS
    )


def test_help_imports_no_command():
    loaded = modules_after(
        "from nemo_probsft.__main__ import main\ntry:\n    main(['--help'])\nexcept SystemExit:\n    pass"
    )
    assert not {module for module, _ in COMMANDS.values()} & loaded
    assert not (HEAVY | {"numpy", "rich", "yaml"}) & loaded


def test_no_command_module_imports_anything_heavy():
    assert not HEAVY & modules_after("import " + ", ".join(module for module, _ in COMMANDS.values()))


def test_a_command_imports_no_other_command():
    """one-click is made of others; the rest stand alone."""
    loaded = modules_after(
        "from nemo_probsft.__main__ import main\ntry:\n    main(['report', '--help'])\nexcept SystemExit:\n    pass"
    )
    assert {module for module, _ in COMMANDS.values()} & loaded == {COMMANDS["report"][0]}


@pytest.mark.parametrize("command", ALL, ids=" ".join)
def test_a_mistake_in_the_arguments_is_one_line(capsys, command):
    line = error_line(capsys, *command, "--no-such-flag")
    assert line.endswith(" --help`")
    assert f"see `nemo-probsft {command[0]}" in line


@pytest.mark.parametrize("command", [["train"], ["diagnose"], ["launch", "--executor", "local"]], ids=" ".join)
def test_a_mistake_in_the_values_is_one_line(capsys, tmp_path, command):
    assert "no.yaml" in error_line(capsys, command[0], str(tmp_path / "no.yaml"), *command[1:])


def test_a_mistyped_command_gets_a_suggestion(capsys):
    assert error_line(capsys, "trian") == "there is no command trian; did you mean train?"
    assert "use one of train, diagnose" in error_line(capsys, "xyz")
    assert "name a command: train, diagnose" in error_line(capsys)
    assert "unrecognized arguments: --verison" in error_line(capsys, "--verison")


def test_overrides_may_stand_before_and_after_the_options():
    parser = command_line.Parser(prog="sweep")
    sweep.add_arguments(parser)
    arguments = ["r.yaml", "a=1", "--objectives", "p", "b=-2", "--tasks", "t", "--plan", "c=3"]
    options = command_line.parse(parser, arguments)
    assert options.overrides == ["a=1", "b=-2", "c=3"]
    assert options.arguments == arguments
    with pytest.raises(ValueError, match=r"^unrecognized arguments: stray; see `sweep --help`$"):
        command_line.parse(parser, [*arguments, "stray"])


def test_sweep_and_one_click_share_their_options():
    given = ["r.yaml", "--tasks", "a,b", "--samples", "4", "--data-dir", "d", "--jobs", "2", "--drop-checkpoints"]
    found = []
    for module, own in ((sweep, ["--objectives", "p"]), (one_click, [])):
        parser = command_line.Parser(prog="test")
        module.add_arguments(parser)
        found.append(command_line.options_of(sweep.Options, command_line.parse(parser, [*given, *own])))
    assert found == [sweep.Options("a,b", data_dir="d", samples=4, jobs=2, drop_checkpoints=True)] * 2
    assert found[0].evaluation == ("--tasks", "a,b", "--data-dir", "d", "--samples", "4")


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ValueError("a\nb"), 2, "a b"),
        (RuntimeError("a rank failed"), 2, "a rank failed"),
        (OSError(28, "No space left on device", "x"), 2, "[Errno 28] No space left on device: 'x'"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (KeyboardInterrupt("x was not written"), 130, "interrupted; x was not written"),
    ],
    ids=str,
)
def test_errors_are_one_line_and_pass_inside_a_rank(capsys, monkeypatch, error, code, line):
    def fail():
        raise error

    monkeypatch.delenv("RANK", raising=False)
    assert command_line.answer(fail) == code
    assert capsys.readouterr().err == f"nemo-probsft: {line}\n"
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(type(error)):
        command_line.answer(fail)
    assert capsys.readouterr().err == ""


def test_the_evaluation_process_has_the_same_flags_and_errors():
    done = subprocess.run([sys.executable, "-m", "evaluation", "--tasks"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2
    assert done.stderr == "nemo-probsft: argument --tasks: expected one argument; see `nemo-probsft eval --help`\n"
