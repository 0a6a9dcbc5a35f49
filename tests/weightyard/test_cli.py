"""The command line as a whole: help without imports, output in two forms, errors as words and codes."""

from __future__ import annotations

import json
import re
import resource
import subprocess
import sys
import tomllib
from io import StringIO
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from modelimage.errors import InvalidInput, NotFound, RateLimited
from modelimage.installation import install_command
from weightyard import cli, exits
from weightyard.advanced import SuggestingGroup
from weightyard.console import DEBUG_VARIABLE, Console, format_table, pass_console
from weightyard.extras import MODULE_EXTRAS, missing_extra
from weightyard.options import ROOT_VARIABLE, absolute_image, default_root

REPOSITORY = Path(__file__).parents[2]
PACKAGES = ("modelimage", "quantize", "builder", "cache_agent", "workspace", "weightyard")
HEAVY = (
    "pydantic",
    "rich",
    "yaml",
    "urllib3",
    "numpy",
    "aiohttp",
    "blake3",
    "torch",
    "huggingface_hub",
)


def run(*args: str) -> tuple[int, str, str]:
    """Run the command in this process; exit code, stdout, stderr."""
    out, err = StringIO(), StringIO()
    console = Console(out=out, err=err)
    code = cli.guarded(
        lambda: cli.weightyard.main(
            args=list(args), prog_name="weightyard", standalone_mode=False, obj=console
        ),
        console=console,
    )
    return code, out.getvalue(), err.getvalue()


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)


def test_help_imports_no_package() -> None:
    script = (
        "import sys; from weightyard.cli import main\n"
        "assert main(['--help']) == 0\n"
        f"print([m for m in {HEAVY!r} if m in sys.modules], file=sys.stderr)"
    )
    assert python(script).stderr.strip() == "[]"


def test_help_is_fast() -> None:
    """Little more than an interpreter and click, in processor time: neither load nor a slow machine changes that.

    The best of ten each, taken in turn.
    """

    def seconds(*program: str) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *program], capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    taken = [
        (seconds("-m", "weightyard.cli", "--help"), seconds("-c", "import click"))
        for _ in range(10)
    ]
    ours, bare = map(min, zip(*taken, strict=True))
    assert ours < 2.5 * bare


def test_every_command_loads_and_explains_itself() -> None:
    context = click.Context(cli.weightyard)
    for name in cli.entries():
        command = cli.weightyard.get_command(context, name)
        assert command is not None
        assert command.name == name
        assert command.help, name
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert parameter.help, f"{name}: {parameter.opts}"


def test_help_lists_every_command_once() -> None:
    page = CliRunner().invoke(cli.weightyard, ["--help"]).output
    for name, entry in cli.entries().items():
        assert page.count(f"  {name} ") == 1
        assert entry.summary in page


def test_unknown_command_suggests() -> None:
    code, out, err = run("biuld")
    assert (code, out) == (exits.USAGE, "")
    assert "biuld" in err
    assert "build" in err


def test_output_options_stand_before_and_after_the_command() -> None:
    before = json.loads(run("--json", "version")[1])
    after = json.loads(run("version", "--json")[1])
    assert before == after
    assert before["weightyard"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell: str) -> None:
    code, out, _ = run("completion", shell)
    assert code == exits.OK
    assert "_WEIGHTYARD_COMPLETE" in out


def test_completion_completes() -> None:
    """The script of a shell asks the program like this."""
    answer = subprocess.run(
        [sys.executable, "-c", "import sys; from weightyard.cli import main; sys.exit(main())"],
        env={"_WEIGHTYARD_COMPLETE": "bash_complete", "COMP_WORDS": "weightyard do", "COMP_CWORD": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "plain,down" in answer.stdout.splitlines()


def raising(error: BaseException) -> click.Command:
    @click.command("raise")
    @pass_console
    def command(console: Console, /) -> None:
        raise error

    return command


def outcome(error: BaseException, *, as_json: bool = False) -> tuple[int, str]:
    err = StringIO()
    console = Console(out=StringIO(), err=err)
    console.configure(json=as_json)
    code = cli.guarded(
        lambda: raising(error).main([], standalone_mode=False, obj=console), console=console
    )
    return code, err.getvalue()


def test_error_is_a_line_and_a_hint() -> None:
    assert outcome(NotFound("no image x", hint="Build it.")) == (
        3,
        "error: no image x\n  hint: Build it.\n",
    )


def test_error_in_json() -> None:
    code, err = outcome(NotFound("no image x", hint="Build it."), as_json=True)
    assert code == 3
    assert json.loads(err) == {
        "event": "error", "kind": "NotFound", "message": "no image x", "hint": "Build it.",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InvalidInput("x"), 2),
        (click.UsageError("x"), 2),
        (RateLimited("x", retry_after=3), 11),
        (KeyboardInterrupt(), 130),
        (click.Abort(), 130),
        (exits.RelayedError("x", hint=None, code=13, kind="EngineFailed"), 13),
        (ZeroDivisionError("x"), 1),
    ],
)
def test_exit_codes(error: BaseException, code: int) -> None:
    assert outcome(error)[0] == code


def test_bug_shows_a_traceback_on_request_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, err = outcome(ZeroDivisionError("by zero"))
    assert "ZeroDivisionError: by zero" in err
    assert "bug in weightyard" in err
    assert "Traceback" not in err + capsys.readouterr().err
    monkeypatch.setenv(DEBUG_VARIABLE, "1")
    outcome(ZeroDivisionError("by zero"))
    assert "Traceback" in capsys.readouterr().err


def test_expected_errors_of_tasks_are_told_as_one() -> None:
    group = ExceptionGroup("tasks", [ExceptionGroup("more", [NotFound("gone")]), NotFound("too")])
    code, err = outcome(group)
    assert code == 3
    assert "error: gone" in err
    assert outcome(ExceptionGroup("tasks", [NotFound("gone"), ZeroDivisionError()]))[0] == exits.BUG


def test_missing_extra_names_the_command_that_installs_it() -> None:
    error = ModuleNotFoundError("No module named 'numba'", name="numba.core")
    code, err = outcome(error)
    assert code == 19
    assert f"Run: {install_command('builder')}" in err


def test_missing_module_of_our_own_is_a_bug() -> None:
    assert missing_extra(ModuleNotFoundError("x", name="weightyard.gone")) is None
    assert outcome(ModuleNotFoundError("x", name="weightyard.gone"))[0] == exits.BUG


def test_extras_are_those_of_the_distribution() -> None:
    """Each optional requirement has its module in the table, under an extra that brings it."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    # where the module isn't called like the distribution
    modules = {
        "mlflow_skinny": "mlflow",
        "grpcio": "grpc",
        "protobuf": "google",
        "google_cloud_storage": "google_crc32c",
        "opentelemetry_sdk": "opentelemetry",
        "opentelemetry_exporter_otlp_proto_http": "opentelemetry",
    }
    brought: dict[str, set[str]] = {}
    for extra, requirements in project["optional-dependencies"].items():
        for requirement in requirements:
            name = re.split(r"[^A-Za-z0-9_-]", requirement)[0].replace("-", "_").lower()
            if extra != "dev" and name != "weightyard":
                brought.setdefault(modules.get(name, name), set()).add(extra)
    assert set(MODULE_EXTRAS) == set(brought)
    for module, extra in MODULE_EXTRAS.items():
        assert extra in brought[module], f"{module} isn't in the extra {extra!r}"


def test_table_aligns() -> None:
    assert format_table(["name", "state"], [("a", None), ("longer", "ready")]) == (
        "NAME    STATE\na       -\nlonger  ready"
    )


def test_cli_reference_is_generated() -> None:
    """docs/cli.md says what the program says; `python scripts/cli_docs.py > docs/cli.md` writes it anew."""
    from scripts.cli_docs import reference  # noqa: PLC0415

    assert (REPOSITORY / "docs" / "cli.md").read_text() == reference()


def test_layouts_are_named_absolutely(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The agent, in another directory, must find what the user means."""
    monkeypatch.chdir(tmp_path)
    assert absolute_image("oci:./out:v1") == f"oci:{tmp_path}/out:v1"
    assert absolute_image("oci:/a/b:v1") == "oci:/a/b:v1"
    assert absolute_image("registry.example/a:v1") == "registry.example/a:v1"
    assert absolute_image("0fb580a292c7") == "0fb580a292c7"


def test_the_cache_is_where_the_environment_says_for_every_command(tmp_path: Path) -> None:
    """`render --to up` and `up` plan for the same directories."""
    assert default_root({ROOT_VARIABLE: str(tmp_path)}) == tmp_path
    assert default_root({ROOT_VARIABLE: "here"}) == Path.cwd() / "here"
    assert default_root({"XDG_CACHE_HOME": str(tmp_path)}) == tmp_path / "weightyard" / "store"


@pytest.mark.parametrize("group", ["", "lease", "rollout"])
def test_a_mistyped_command_is_answered_once(
    group: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [group] if group else []
    command = (
        cli.weightyard.get_command(click.Context(cli.weightyard), group)
        if group
        else cli.weightyard
    )
    assert isinstance(command, SuggestingGroup)
    for name in command.list_commands(click.Context(command)):
        mistyped = f"{name}{name[-1]}"
        assert cli.main([*words, mistyped]) == exits.USAGE
        told = capsys.readouterr().err
        assert told.count("Did you mean") == 1
        # Short names are close to several others.
        assert repr(name) in told or len(name) < 4
    assert cli.main([*words, "zzzzzz"]) == exits.USAGE
    assert "Did you mean" not in capsys.readouterr().err


def test_every_group_suggests() -> None:
    context = click.Context(cli.weightyard)
    found = [cli.weightyard.get_command(context, name) for name in cli.entries()]
    groups = [each for each in found if isinstance(each, click.Group)]
    assert groups
    assert all(isinstance(each, SuggestingGroup) for each in groups)


def test_the_lines_of_a_groups_commands_are_whole() -> None:
    """click cuts a first sentence that is long, which says less than a short one."""
    context = click.Context(cli.weightyard)
    for name in cli.weightyard.list_commands(context):
        group = cli.weightyard.get_command(context, name)
        for child in group.list_commands(context) if isinstance(group, click.Group) else ():
            command = group.get_command(context, child) if isinstance(group, click.Group) else None
            assert command is not None
            assert not command.get_short_help_str().endswith("..."), f"{name} {child}"
