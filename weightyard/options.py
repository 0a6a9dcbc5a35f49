"""Options shared by several subcommands, with one spelling and one help text."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any, Final, ParamSpec, TypeVar

import click

from modelimage.reference import LayoutReference, parse_image
from modelimage.user_cache import user_cache
from weightyard.advanced import AdvancedOption

P = ParamSpec("P")
R = TypeVar("R")

ROOT_VARIABLE: Final = "WEIGHTYARD_ROOT"


def default_root(environ: Mapping[str, str]) -> Path:
    """The directory of the model cache where no option names one: $WEIGHTYARD_ROOT, else the user's; absolute."""
    return Path(environ.get(ROOT_VARIABLE) or user_cache(environ) / "store").absolute()


def root_option(command: Callable[P, R]) -> Callable[P, R]:
    """Adds `--root DIR`, the cache's directory, passed as the keyword `root: Path`, absolute."""
    return click.option(
        "--root",
        type=PathName(file_okay=False, resolve_path=True),
        envvar=ROOT_VARIABLE,
        default=lambda: default_root(os.environ),
        show_default="~/.cache/weightyard/store",
        show_envvar=True,
        help="Directory of the model cache.",
    )(command)


def missing_root(root: Path, environ: Mapping[str, str]) -> str | None:
    """What to tell of a root that somebody named and that isn't there; None for any other.

    For commands that answer all the same, as of a machine where nothing was started yet.
    """
    named = root != default_root({**environ, ROOT_VARIABLE: ""})
    return (
        f"note: there is no {root}: check --root and {ROOT_VARIABLE}"
        if named and not root.exists()
        else None
    )


def workspace_argument(command: Callable[..., R]) -> Callable[..., R]:
    """Adds the argument WORKSPACE, passed as the keyword `given: str`; `-f WORKSPACE` is the same, as in kubectl."""

    @click.argument("argument", required=False, metavar="WORKSPACE")
    @click.option("-f", "--file", metavar="WORKSPACE", help="The same as the argument.")
    @wraps(command)
    def with_workspace(*args: Any, argument: str | None, file: str | None, **kwargs: Any) -> R:
        given = [each for each in (argument, file) if each is not None]
        if not given:
            raise click.UsageError("Missing argument 'WORKSPACE'.")
        if len(given) > 1:
            raise click.UsageError(f"Name one workspace: {given[0]}, or -f {given[1]}.")
        return command(*args, given=given[0], **kwargs)

    return with_workspace


class Number(click.FloatRange):
    """A finite number within bounds. Python reads nan and inf as numbers: no comparison with nan is true."""

    name = "number"

    def _describe_range(self) -> str:
        # Click writes a range without bounds as `x<=None`; an empty text is left out of the help.
        return "" if self.min is None and self.max is None else super()._describe_range()

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value} is not a number.", param, ctx)
        return number


class WholeNumber(click.IntRange):
    """A whole number within bounds."""

    name = "number"


class PathName(click.Path):
    """A path of the command line. An empty one, as of a variable that isn't set, isn't the working directory."""

    def __init__(
        self,
        *,
        exists: bool = False,
        file_okay: bool = True,
        dir_okay: bool = True,
        resolve_path: bool = False,
    ) -> None:
        super().__init__(
            exists=exists,
            file_okay=file_okay,
            dir_okay=dir_okay,
            resolve_path=resolve_path,
            path_type=Path,
        )

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not os.fspath(value):
            self.fail("an empty path", param, ctx)
        return super().convert(value, param, ctx)


class ModelName(click.ParamType[str]):
    """An image or model key that is valid in any process: a layout's directory is made absolute.

    The agent's working directory differs from the command's.
    """

    name = "model"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return absolute_image(str(value))


def absolute_image(text: str, base: Path | None = None) -> str:
    """`oci:out:v1` as `oci:/current/dir/out:v1`, or within `base`; any other name unchanged. Raises InvalidInput."""
    if not text.startswith("oci:"):
        return text
    reference = parse_image(text)
    if not isinstance(reference, LayoutReference):
        return text
    # Without `..`, so that one directory has one name, from wherever it is named.
    path = os.path.abspath((base or Path()) / reference.path)  # noqa: PTH100 - resolve() would follow links
    return str(replace(reference, path=Path(path)))


def access_options(command: Callable[..., R]) -> Callable[..., R]:
    """Adds the registry options, passed as the keyword `access: modelimage.access.Access`.

    Credentials come from docker's configuration (DOCKER_CONFIG, credential helpers).
    """

    @click.option(
        "--plain-http",
        "plain_http",
        metavar="HOST",
        multiple=True,
        help="Use HTTP without TLS for this registry, as for loopback ones. Repeatable.",
    )
    @click.option(
        "--ca-file",
        type=PathName(exists=True, dir_okay=False),
        envvar="WEIGHTYARD_CA_FILE",
        show_envvar=True,
        help="PEM file of additional certificate authorities to trust: of registries, the Hub and S3.",
    )
    @click.option(
        "--internal-host",
        "internal_hosts",
        cls=AdvancedOption,
        metavar="HOST",
        multiple=True,
        help="A host or network (10.1.0.0/16) at internal addresses, or without TLS, that registries may direct "
        "requests to: their token server or storage. Repeatable.",
    )
    @wraps(command)
    def with_access(
        *args: Any,
        plain_http: tuple[str, ...],
        ca_file: Path | None,
        internal_hosts: tuple[str, ...],
        **kwargs: Any,
    ) -> R:
        access = environment_access(plain_http, ca_file, internal_hosts)
        return command(*args, access=access, **kwargs)

    return with_access


def environment_access(
    plain_http: Iterable[str], ca_file: Path | None, internal_hosts: Iterable[str] = ()
) -> Any:
    """The Access of the user's credentials, environment and these settings. Raises InvalidInput."""
    # Imported late: a command that uses no registry shouldn't pay for a client's import.
    from modelimage.access import Access  # noqa: PLC0415

    if ca_file is not None:
        from weightyard.authorities import trust  # noqa: PLC0415

        trust(ca_file, os.environ)
    return Access.from_environment(
        os.environ, plain_http=plain_http, ca_file=ca_file, internal_hosts=internal_hosts
    )
