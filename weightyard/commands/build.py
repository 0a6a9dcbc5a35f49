"""`weightyard build`: parses options, runs the builder, shows the result."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from typing import Any

import click

from builder.base_image import mount_source, open_base
from builder.build import BuildOptions, BuildTools, plan_build
from builder.build import build as build_image
from builder.digest_cache import DigestCache
from builder.records import created_time
from builder.sources.datasets import calibration_file
from builder.sources.factory import open_source, source_forms
from builder.variants import (
    ENGINES,
    QuantizeChoices,
    chosen_variants,
)
from modelimage.access import Access
from modelimage.errors import InvalidInput
from modelimage.reference import (
    EngineReference,
    ImageReference,
    RegistryReference,
    parse_image,
)
from modelimage.registry.credentials import BasicCredential, ExplicitCredential, FirstOf
from modelimage.user_cache import user_cache
from weightyard.advanced import AdvancedOption
from weightyard.build_report import shown_plan, shown_result, summary
from weightyard.build_targets import base_reference, check_apart, open_target, published
from weightyard.ci_reports import add_summary
from weightyard.console import Console, pass_console
from weightyard.evaluation_options import evaluation_options
from weightyard.options import PathName, WholeNumber, access_options
from weightyard.signals import stops_gently
from weightyard.text import parse_bytes

_HELP = f"""Pack a checkpoint into a model image.

SOURCE is {source_forms("or")}.
The same source and options give the same digests on any machine. An interrupted build resumes when it is run again.
"""


@click.command(
    help=_HELP,
    epilog="""\b
Examples:
  weightyard build ./SmolLM2-135M-Instruct --to oci:./out:v1
  weightyard build hf://org/name@main --to registry.example/team/model:v1
  weightyard build ./checkpoint --to oci:./out:v1 --variant int8 --variant int4
  weightyard build ./checkpoint --to oci:./out:v1 --dry-run
""",
)
@click.argument("source")
@click.option(
    "--to",
    "destination",
    required=True,
    metavar="DEST",
    help="Target: oci:DIR[:TAG], REGISTRY/REPOSITORY[:TAG], or docker:NAME[:TAG] for docker or podman. "
    "The default tag is 'latest'.",
)
@click.option(
    "--variant",
    "variants",
    multiple=True,
    metavar="NAME",
    help="Add a quantized variant beside the published weights (bf16): int8, int4 or int8-w8a16. Repeatable.",
)
@click.option(
    "--engine",
    cls=AdvancedOption,
    type=click.Choice(ENGINES),
    default="auto",
    show_default=True,
    help="Quantization engine. auto: gptq for int4 if it is installed, else rtn.",
)
@click.option(
    "--calibration",
    cls=AdvancedOption,
    metavar="FILE|hf://ORG/NAME[/PATH]",
    help="Calibration text, JSON lines or Parquet for gptq and llm-compressor, instead of the shipped text.",
)
@click.option(
    "--calibration-samples",
    cls=AdvancedOption,
    type=WholeNumber(1),
    metavar="N",
    help="Use the first N paragraphs, lines or rows of the calibration text.  [default: 128]",
)
@click.option(
    "--group-size",
    cls=AdvancedOption,
    type=click.Choice(["128", "64", "32"]),
    help="Weights per int4 scale.",
)
@click.option(
    "--max-layer-size",
    cls=AdvancedOption,
    metavar="SIZE",
    help="Split larger weight files losslessly, so that no layer is larger: 10GB.",
)
@evaluation_options
@click.option(
    "--include",
    multiple=True,
    metavar="GLOB",
    help="Also pack matching files that are left out by default.",
)
@click.option(
    "--exclude",
    multiple=True,
    metavar="GLOB",
    help="Leave matching files out; overrides --include.",
)
@click.option(
    "--convert-pickle", is_flag=True, help="Convert .bin and .pt weights to safetensors, safely."
)
@click.option(
    "--source-uri",
    cls=AdvancedOption,
    metavar="URI",
    help="Source URI to record for a local directory.",
)
@click.option(
    "--revision",
    cls=AdvancedOption,
    metavar="TEXT",
    help="Source revision to record for a local directory.",
)
@click.option(
    "--username",
    cls=AdvancedOption,
    metavar="NAME",
    help="User name for the registry; needs --password-stdin.",
)
@click.option(
    "--password-stdin",
    cls=AdvancedOption,
    is_flag=True,
    help="Read the registry's password from standard input.",
)
@click.option(
    "--mount-from",
    cls=AdvancedOption,
    multiple=True,
    metavar="REPOSITORY",
    help="Mount existing layers from this repository of the same registry instead of uploading them. Repeatable.",
)
@click.option(
    "--base",
    cls=AdvancedOption,
    metavar="IMAGE",
    help="Base image (oci:DIR:TAG or in a registry) for an image that can run: "
    "KServe's sidecar modelcars need a shell.",
)
@click.option(
    "--stage",
    cls=AdvancedOption,
    is_flag=True,
    help="Download weights to this disk first, even if they could be streamed to the destination.",
)
@click.option(
    "--work-dir",
    cls=AdvancedOption,
    type=PathName(file_okay=False),
    help="Directory for temporary weights: converted, quantized, downloaded. [default: ~/.cache/weightyard]",
)
@click.option(
    "--sbom",
    is_flag=True,
    help="Attach an ML-BOM of each variant (CycloneDX): the model, its files and digests.",
)
@click.option(
    "--provenance",
    is_flag=True,
    help="Attach the build's provenance (SLSA, in-toto): source, revision and options.",
)
@click.option("--dry-run", is_flag=True, help="Show what would be packed; write nothing.")
@access_options
@pass_console
@stops_gently
def build(
    console: Console,
    /,
    *,
    source: str,
    destination: str,
    access: Access,
    dry_run: bool,
    username: str | None,
    password_stdin: bool,
    **given: Any,
) -> None:
    """Parse the options, build, and show the result."""
    target = parse_image(destination)
    options = _options(given)
    check_apart(source, target)
    if isinstance(target, EngineReference) and (given["sbom"] or given["provenance"]):
        raise InvalidInput(
            "nothing can be attached to an image in a docker engine",
            hint="Leave --sbom and --provenance out, or build to a registry or oci:DIR.",
        )
    opened = open_source(source, os.environ, uri=given["source_uri"], revision=given["revision"])
    # A dry run needs no credentials for the destination: it ends before they are used.
    if dry_run:
        console.result(*shown_plan(plan_build(opened, options), target, options))
        return
    reach = _with_login(access, target, username, password_stdin=password_stdin)
    below = base_reference(given["base"])
    if below is not None:
        options = replace(options, base=open_base(below, reach))
    # The base's registry may already hold its layers: they are mounted instead of uploaded.
    mount_from = [*given["mount_from"], *(mount_source(below, target) if below else ())]
    cache = user_cache(os.environ)
    before = published(target, reach)
    with console.resumable():
        result = build_image(
            opened,
            open_target(console, target, reach, mount_from),
            options,
            BuildTools(
                DigestCache(cache / "digests"),
                given["work_dir"] or cache / "work",
                console,
            ),
        )
    document, text = shown_result(result, target, before=before)
    add_summary(os.environ, summary(result, document))
    console.result(document, text)


def _options(given: dict[str, Any]) -> BuildOptions:
    return BuildOptions(
        variants=chosen_variants(given["variants"]),
        include=given["include"],
        exclude=given["exclude"],
        convert_pickle=given["convert_pickle"],
        quantize=QuantizeChoices(
            given["engine"],
            calibration_file(given["calibration"]) if given["calibration"] else None,
            int(given["group_size"]) if given["group_size"] else None,
            given["evaluation"],
            given["calibration_samples"],
        ),
        max_layer_size=parse_bytes(given["max_layer_size"]) if given["max_layer_size"] else None,
        created=created_time(os.environ.get("SOURCE_DATE_EPOCH")),
        staged=given["stage"],
        sbom=given["sbom"],
        provenance=given["provenance"],
    )


def _with_login(
    access: Access, target: ImageReference, username: str | None, *, password_stdin: bool
) -> Access:
    if username is None and not password_stdin:
        return access
    if username is None or not password_stdin:
        raise InvalidInput(
            "--username and --password-stdin go together",
            hint="For example: weightyard build … --username ci --password-stdin < token",
        )
    if not isinstance(target, RegistryReference):
        raise InvalidInput(
            "--username needs a registry as the destination", hint="Leave it out for oci:DIR."
        )
    # From stdin, since command lines are visible to all users of the machine.
    if sys.stdin is None:
        raise InvalidInput(
            "stdin is closed, and the password is read from it", hint="Add `< token`."
        )
    password = sys.stdin.read().rstrip("\r\n")
    # For the target's registry only: the base may be in another one, which must not get this password.
    explicit = ExplicitCredential(target.registry, BasicCredential(username, password))
    return replace(access, credentials=FirstOf([explicit, access.credentials]))
