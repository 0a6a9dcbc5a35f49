"""The `weightyard` command: a table of lazily imported subcommands, and the handler that ends every error.

Help is printed from the table, so `weightyard --help` imports no package. A WeightyardError becomes one line and a hint
on stderr and an exit code from `weightyard.exits`; any other exception is reported as a bug.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Final

import click

from modelimage.errors import WeightyardError
from modelimage.spans import tracing
from modelimage.trace_headers import is_on
from weightyard import __version__, exits
from weightyard.advanced import SuggestingGroup, help_all_option
from weightyard.console import DEBUG_VARIABLE, Console, debugging
from weightyard.extras import missing_extra
from weightyard.standard_streams import ReaderGone, standard_streams

# Commands that move models: a trace of anything else would say nothing.
_TRACED: Final = frozenset({"build", "copy", "prewarm", "pull", "quantize", "up", "verify"})
COMPLETE_VARIABLE: Final = "_WEIGHTYARD_COMPLETE"
# What other programs call it: the words that people try first.
_ELSEWHERE: Final[Mapping[str, str]] = {
    "push": "Build into a registry with `weightyard build SOURCE --to IMAGE`, or send an image with `weightyard copy`.",
    "run": "Serve a model with `weightyard up`.",
    "serve": "Serve a model with `weightyard up`.",
    "start": "Serve a model with `weightyard up`.",
    "stop": "Stop a workspace with `weightyard down`.",
    "images": "List the cached models with `weightyard ls`.",
    "list": "List the cached models with `weightyard ls`, the workspaces with `weightyard ps`.",
    "models": "List the cached models with `weightyard ls`.",
    "download": "Fetch a model with `weightyard pull`; pack one of the Hub with `weightyard build hf://ORG/NAME`.",
    "delete": "Remove a model with `weightyard rm`.",
    "remove": "Remove a model with `weightyard rm`.",
    "show": "Show an image with `weightyard inspect`, a cached model with `weightyard ls MODEL`.",
    "info": "Show an image with `weightyard inspect`.",
    "login": "Log in with docker, podman, skopeo or oras: weightyard reads their credentials.",
    "create": "Pack a checkpoint with `weightyard build`.",
    "apply": "Render a workspace with `weightyard render`, and apply it with kubectl.",
}  # fmt: skip
_BUG_HINT = f"This is a bug in weightyard. Set {DEBUG_VARIABLE}=1 to see where, and report it with the command you ran."


@dataclass(frozen=True, slots=True)
class Entry:
    """A subcommand: its name, `module:attribute` of its click command, and a one-line summary."""

    name: str
    path: str
    summary: str


SECTIONS: Final[tuple[tuple[str, tuple[Entry, ...]], ...]] = (
    (
        "Model images",
        (
            Entry("build", "weightyard.commands.build:build", "Pack a checkpoint into a model image."),
            Entry("inspect", "weightyard.commands.inspect:inspect", "Show the contents of a model image."),
            Entry("verify", "weightyard.commands.verify:verify", "Check every byte of an image or a model directory."),
            Entry("quantize", "weightyard.commands.quantize:quantize", "Make an INT8 or INT4 checkpoint."),
            Entry("copy", "weightyard.commands.copy:copy", "Copy an image between registries and directories."),
            Entry("diff", "weightyard.commands.diff:diff", "Show what differs between two images."),
            Entry("attach", "weightyard.commands.attach:attach", "Attach an SBOM or a report to an image."),
            Entry("discover", "weightyard.commands.discover:discover", "List what is attached to an image."),
            Entry("sign", "weightyard.commands.sign:sign", "Sign an image with a key."),
            Entry("prune", "weightyard.commands.prune:prune", "Remove old versions by a policy."),
        ),
    ),
    (
        "Cache",
        (
            Entry("pull", "weightyard.commands.pull:pull", "Fetch a model into this machine's cache."),
            Entry("agent", "weightyard.commands.agent:agent", "Run the cache agent of a node."),
            Entry(
                "configure-containerd",
                "weightyard.commands.configure_containerd:configure_containerd",
                "Configure containerd to use this node's mirror.",
            ),
            Entry("hf-view", "weightyard.commands.hf_view:hf_view", "Show a cached model as an HF cache directory."),
            Entry("prewarm", "weightyard.commands.prewarm:prewarm", "Fetch a model onto nodes before it is needed."),
            Entry("status", "weightyard.commands.status:status", "Show which nodes hold which models."),
            Entry("ls", "weightyard.commands.ls:ls", "List the cached models."),
            Entry("events", "weightyard.commands.events:events", "Show what the agent did lately."),
            Entry("explain", "weightyard.commands.explain:explain", "Explain why a pod waits, or an image's state."),
            Entry("mount", "weightyard.commands.mount:mount", "Mount a model at a directory, read-only."),
            Entry("umount", "weightyard.commands.umount:umount", "Unmount a model."),
            Entry("df", "weightyard.commands.df:df", "Show the cache's use of the disk."),
            Entry("rm", "weightyard.commands.rm:rm", "Remove models from the cache."),
            Entry("pin", "weightyard.commands.pin:pin", "Protect a model from eviction."),
            Entry("warm", "weightyard.commands.warm:warm", "Bring a cached model into memory."),
            Entry("gc", "weightyard.commands.gc:gc", "Free space in the cache."),
            Entry("lease", "weightyard.commands.lease:lease", "List, take and release leases on cached models."),
            Entry("check", "weightyard.commands.check:check", "Check a cache for damage."),
        ),
    ),
    (
        "Serve",
        (
            Entry("init", "weightyard.commands.init:init", "Write a commented workspace to start from."),
            Entry("validate", "weightyard.commands.validate:validate", "Check files of workspaces and cached models."),
            Entry("import", "weightyard.commands.import_documents:import_command", "Write KAITO's workspaces as ours."),
            Entry("up", "weightyard.commands.up:up", "Cache a model and serve it here with vLLM."),
            Entry("ps", "weightyard.commands.ps:ps", "List the workspaces that run here."),
            Entry("top", "weightyard.commands.top:top", "Show live what is fetched, served and cached."),
            Entry("logs", "weightyard.commands.logs:logs", "Show a workspace's server log."),
            Entry("down", "weightyard.commands.down:down", "Stop workspaces that run here."),
            Entry("render", "weightyard.commands.render:render", "Write a workspace for Kubernetes, compose or llm-d."),
        ),
    ),
    (
        "Cluster",
        (
            Entry("controller", "weightyard.commands.controller:controller", "Run the controller of workspaces."),
            Entry("rollout", "weightyard.commands.rollout:rollout", "Follow and steer a workspace's new version."),
            Entry("probes", "weightyard.commands.probes:probes", "Try probes, and attach them to an image."),
            Entry("crds", "weightyard.commands.crds:crds", "Print or apply the CustomResourceDefinitions."),
            Entry("cleanup", "weightyard.commands.cleanup:cleanup", "Remove node labels before uninstalling."),
            Entry("activator", "weightyard.commands.activator:activator", "Hold requests while a workspace starts."),
        ),
    ),
    (
        "Other",
        (
            Entry("doctor", "weightyard.commands.doctor:doctor", "Check whether this machine or a cluster is ready."),
            Entry("help", "weightyard.commands.help:help_command", "Show the help of a command or a topic."),
            Entry("completion", "weightyard.commands.completion:completion", "Print a shell completion script."),
            Entry("version", "weightyard.commands.version:version", "Show the versions of weightyard and its parts."),
        ),
    ),
)  # fmt: skip


def entries() -> dict[str, Entry]:
    """All subcommands by name, in the order of the help page."""
    return {entry.name: entry for _, group in SECTIONS for entry in group}


class LazyGroup(SuggestingGroup):
    """A group that lists its commands from the table and imports one only when it is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(entries())

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = entries().get(cmd_name)
        if entry is None:
            return None
        module, _, attribute = entry.path.partition(":")
        command = getattr(import_module(module), attribute)
        if not isinstance(command, click.Command):
            raise TypeError(f"{entry.path} is not a click command")
        command.short_help = entry.summary
        _accept_common_options(command)
        return command

    def meant(self, ctx: click.Context, given: str) -> str:
        """Like `SuggestingGroup.meant`, and what other programs call it."""
        return f" {_ELSEWHERE[given]}" if given in _ELSEWHERE else super().meant(ctx, given)

    def invoke(self, ctx: click.Context) -> object:
        """Invokes a command like click, which would take every broken pipe for stdout's, and end the process."""
        try:
            return super().invoke(ctx)
        except ReaderGone:
            raise
        except BrokenPipeError as error:
            raise RuntimeError(f"unexpected: {error}") from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the table by sections without importing any command."""
        width = max(map(len, entries()))
        for title, group in SECTIONS:
            with formatter.section(title):
                formatter.write_dl([(entry.name.ljust(width), entry.summary) for entry in group])


def _configure(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value:
        # The run has one Console, whatever level of the command line the option is at.
        ctx.find_root().ensure_object(Console).configure(**{str(param.name): True})


def _output_options() -> list[click.Option]:
    """The output options. They are accepted before and after the subcommand's name."""
    common: dict[str, Any] = {
        # Eager: an error in the rest of the command line is written in this form too.
        "is_flag": True, "is_eager": True, "expose_value": False, "callback": _configure,
    }  # fmt: skip
    return [
        click.Option(
            ["--json", "json"], help="Write the result as JSON to stdout, events as JSON lines to stderr.", **common
        ),
        click.Option(["--quiet", "-q", "quiet"], help="Write results and errors only.", **common),
        click.Option(["--no-color", "no_color"], help="Write no colours and no progress bars.", **common),
    ]  # fmt: skip


def _accept_common_options(command: click.Command) -> None:
    taken = {name for parameter in command.params for name in parameter.opts}
    # Options that a command defines itself keep their meaning.
    common = [*_output_options(), help_all_option()]
    command.params.extend(o for o in common if not taken.intersection(o.opts))
    if isinstance(command, click.Group):
        for child in command.commands.values():
            _accept_common_options(child)


@click.command(
    cls=LazyGroup,
    params=[*_output_options(), help_all_option()],
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="weightyard")
def weightyard() -> None:
    """Get LLM weights from where they are published to the GPU that serves them.

    Build reproducible model images, keep them verified in a cache on every node, and launch vLLM on top.
    """


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code; never raises."""
    console = Console()
    if COMPLETE_VARIABLE in os.environ:
        # Imported where a shell asks.
        from weightyard.shell_completion import register  # noqa: PLC0415

        register({name: entry.summary for name, entry in entries().items()})
    words = list(sys.argv[1:] if argv is None else argv)

    def run() -> object:
        with _traced(words):
            # Else click would print errors and exit by itself, with codes and words of its own.
            return weightyard.main(
                args=words, prog_name="weightyard", standalone_mode=False, obj=console
            )

    return guarded(run, console=console)


def _traced(words: Sequence[str]) -> AbstractContextManager[None]:
    """A trace around a command that moves models, where a collector is named."""
    command = next((word for word in words if not word.startswith("-")), "")
    if command not in _TRACED or not is_on(os.environ):
        return nullcontext()
    return tracing(os.environ, service="weightyard", name=f"weightyard {command}")


def guarded(call: Callable[[], object], *, console: Console) -> int:
    """Runs a program's body, and turns its errors into messages on stderr and an exit code."""
    with standard_streams():
        return _guarded(call, console)


def _guarded(call: Callable[[], object], console: Console) -> int:
    try:
        outcome = _helping(call, console)
        # Flushed here, so that a closed stdout fails inside this `try` and not at exit.
        sys.stdout.flush()
    except WeightyardError as error:
        _trace(error)
        console.fail(error.message, hint=error.hint, kind=error.kind)
        return exits.exit_code(error)
    except click.ClickException as error:
        return _usage(error, console)
    except (click.Abort, KeyboardInterrupt):
        console.fail("interrupted", kind="Interrupted")
        return exits.INTERRUPTED
    except ReaderGone:
        return exits.BROKEN_PIPE
    except Exception as error:  # noqa: BLE001 - the last frame: anything here is a bug and reported as one
        return _unexpected(error, console)
    return outcome if isinstance(outcome, int) else exits.OK


def _helping(call: Callable[[], object], console: Console) -> object:
    """The call's outcome; of a group without a command its help, which was asked for."""
    try:
        return _ungrouped(call)
    except click.exceptions.NoArgsIsHelpError as error:
        console.result({"help": error.format_message()}, error.format_message())
        return exits.OK


def _ungrouped(call: Callable[[], object]) -> object:
    """The call's outcome. Expected errors of tasks that ran together are raised as the first of them."""
    try:
        return call()
    except ExceptionGroup as group:
        errors, bugs = group.split(WeightyardError)
        # A bug among expected errors is told before them.
        if errors is None or bugs is not None:
            raise
        raise next(_leaves(errors)) from group


def _leaves(group: ExceptionGroup[Exception]) -> Iterator[Exception]:
    for each in group.exceptions:
        if isinstance(each, ExceptionGroup):
            yield from _leaves(each)
        else:
            yield each


def _usage(error: click.ClickException, console: Console) -> int:
    hint = None
    if isinstance(error, click.UsageError) and error.ctx is not None:
        hint = f"See `{error.ctx.command_path} --help`."
    # Click lists choices in lines of their own, behind tabs.
    console.fail(" ".join(error.format_message().split()), hint=hint, kind="Usage")
    return exits.USAGE


def _trace(error: Exception) -> None:
    if debugging():
        with suppress(ReaderGone):
            traceback.print_exception(error)


def _unexpected(error: Exception, console: Console) -> int:
    _trace(error)
    missing = missing_extra(error) if isinstance(error, ModuleNotFoundError) else None
    if missing is not None:
        console.fail(missing.message, hint=missing.hint, kind=type(missing).__name__)
        return exits.exit_code(missing)
    console.fail(f"{type(error).__name__}: {error}", hint=_BUG_HINT, kind="Bug")
    return exits.BUG


if __name__ == "__main__":
    sys.exit(main())
