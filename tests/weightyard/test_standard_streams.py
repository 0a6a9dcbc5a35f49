"""Output that nobody can take: a pipe without a reader, a full disk, a closed stream. None is told as a bug."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

import pytest

from tests.servers.process import child_environment
from tests.weightyard.local import Terminal, empty_store
from weightyard import cli, exits

NOTHING: Mapping[str, str] = MappingProxyType({})
TAB = MappingProxyType(
    {"_WEIGHTYARD_COMPLETE": "bash_complete", "COMP_WORDS": "weightyard ", "COMP_CWORD": "1"}
)
COMMANDS = {
    "--help": NOTHING,
    "--version": NOTHING,
    "": NOTHING,
    "build --help-all": NOTHING,
    "help cluster": NOTHING,
    "completion bash": NOTHING,
    "crds": NOTHING,
    "ls": NOTHING,
    "--json ls": NOTHING,
    "df --json": NOTHING,
    "ps": NOTHING,
    "top --once": NOTHING,
    "logs served": NOTHING,
    "lease ls": NOTHING,
    "(a shell's Tab)": TAB,
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's directory, with an empty store and the log of a server."""
    home = tmp_path_factory.mktemp("home")
    empty_store(home / "store")
    log = home / "store/up/served/server.log"
    log.parent.mkdir(parents=True)
    log.write_text("a line\n")
    return home


@pytest.fixture
def unread() -> Iterator[int]:
    """A pipe that nobody reads any more."""
    reading, writing = os.pipe()
    os.close(reading)
    yield writing
    os.close(writing)


def outcome(
    home: Path, command: str, redirection: str = "", *, stdout: int = subprocess.PIPE,
    stderr: int = subprocess.PIPE, extra: Mapping[str, str] = NOTHING,
) -> tuple[int, str]:  # fmt: skip
    """The exit code and stderr of a command with a shell's redirection."""
    words = [] if extra else command.split()
    program = [sys.executable, "-m", "weightyard.cli", *words]
    done = subprocess.run(
        ["bash", "-c", f'exec "$@" {redirection}', "bash", *program],
        cwd=home, env=child_environment(home, WEIGHTYARD_ROOT=str(home / "store"), **extra),
        text=True, check=False, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr,
    )  # fmt: skip
    return done.returncode, done.stderr or ""


def message(command: str, told: str) -> str:
    """The message of the only error, which has a hint."""
    if "--json" in command:
        (line,) = told.splitlines()
        error = json.loads(line)
        assert error["hint"]
        return str(error["message"])
    error, hint = told.splitlines()
    assert hint.startswith("  hint: ")
    return error.removeprefix("error: ")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_reader_that_goes_away_ends_a_command_without_a_word(
    home: Path, unread: int, command: str
) -> None:
    done = outcome(home, command, stdout=unread, extra=COMMANDS[command])
    assert done == (exits.BROKEN_PIPE, "")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_closed_stdout_is_told_as_that(home: Path, command: str) -> None:
    code, told = outcome(home, command, ">&-", extra=COMMANDS[command])
    assert (code, message(command, told)) == (9, "stdout is closed")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_stdout_on_a_full_disk_is_told_as_that(home: Path, command: str) -> None:
    code, told = outcome(home, command, ">/dev/full", extra=COMMANDS[command])
    assert code == 10
    assert message(command, told) == "can't write to stdout: No space left on device"


@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full"])
def test_what_nobody_is_told_changes_no_exit_code(home: Path, redirection: str) -> None:
    assert outcome(home, "lss", redirection)[0] == 2
    assert outcome(home, "ls absent", redirection)[0] == 3
    assert outcome(home, "ls", redirection)[0] == 0
    assert outcome(home, "ls", f">/dev/full {redirection}")[0] == 10


def test_an_error_that_nobody_reads_keeps_its_code(home: Path, unread: int) -> None:
    assert outcome(home, "ls absent", stderr=unread)[0] == 3
    debugging = {"WEIGHTYARD_DEBUG": "1", "WEIGHTYARD_ROOT": str(home / "store")}
    done = subprocess.run(
        [sys.executable, "-m", "weightyard.cli", "ls", "absent"],
        env=child_environment(home, **debugging), stderr=unread, check=False,
    )  # fmt: skip
    assert done.returncode == 3


def test_no_file_of_ours_gets_the_number_of_a_closed_stream(
    terminal: Terminal, tiny_image: str
) -> None:
    """Else what is printed would be written into it, here or by a child."""
    program = [sys.executable, "-m", "weightyard.cli", "pull", tiny_image]
    done = subprocess.run(
        ["bash", "-c", 'exec "$@" <&- >&- 2>&-', "bash", *program],
        cwd=terminal.directory, env=terminal.environment(), check=False,
    )  # fmt: skip
    assert done.returncode == 9
    assert json.loads(terminal.ok("check", "--json"))["findings"] == []
    assert len(terminal.models()) == 1


def test_a_password_is_not_read_of_a_closed_stdin(home: Path) -> None:
    login = "build x --to r.example/a/b:v1 --username ci --password-stdin"
    code, told = outcome(home, login, "<&-")
    assert code == 2
    assert "stdin is closed" in told


def test_a_pipe_that_another_process_made_nonblocking_is_waited_for(home: Path) -> None:
    """It takes 64 KiB at once: what doesn't fit is written when there is room again."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    program = [sys.executable, "-m", "weightyard.cli", "crds"]
    with (
        subprocess.Popen(program, env=child_environment(home), stdout=writing) as child,
        os.fdopen(reading, "rb") as pipe,
    ):
        os.close(writing)
        shown = pipe.read()
    assert child.returncode == 0
    assert len(shown) > 1 << 16
    plain = subprocess.run(program, env=child_environment(home), capture_output=True, check=True)
    assert shown == plain.stdout


TO_A_TERMINAL = """
import sys
import click
from weightyard import cli
from weightyard.console import Console

def work():
    print("ready", file=sys.stderr, flush=True)
    sys.stdin.readline()
    console.result("x", "to nobody")
    print("went on", file=sys.stderr)
    click.echo("to nobody")
    print("never", file=sys.stderr)

console = Console()
sys.exit(cli.guarded(work, console=console))
"""


def test_a_closed_terminal_fails_no_work_and_ends_what_only_shows(home: Path) -> None:
    """Writing to it is EIO. Work that tells of itself, as a server's supervisor does, has to go on."""
    master, slave = os.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", TO_A_TERMINAL], env=child_environment(home), text=True,
        stdin=subprocess.PIPE, stdout=slave, stderr=subprocess.PIPE,
    ) as child:  # fmt: skip
        os.close(slave)
        assert child.stderr is not None
        assert child.stderr.readline() == "ready\n"
        os.close(master)
        _, told = child.communicate("\n")
    assert (child.returncode, told) == (exits.BROKEN_PIPE, "went on\n")


def test_a_broken_pipe_of_something_else_is_not_taken_for_stdout_s(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr("weightyard.commands.ps.all_workspaces", broken)
    assert cli.main(["ps"]) == exits.BUG
    assert "Broken pipe" in capsys.readouterr().err
