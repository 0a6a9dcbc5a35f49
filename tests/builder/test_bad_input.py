"""What goes wrong is said in one line, has an exit code of its own, and leaves nothing half-published."""

from __future__ import annotations

import json
import pickle
import shutil
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from modelimage.durable import check_space
from modelimage.errors import NoSpace
from modelimage.layout import Layout
from tests.builder.building import Outcome, weightyard, weightyard_here
from tests.builder.checkpoints import sharded, single, weights, write
from tests.quantize.checkpoints import Model, llama
from tests.quantize.checkpoints import write as write_model
from tests.servers.fixtures import USERS
from tests.servers.hub import Hub
from tests.servers.registry import DockerRegistry

UniqueName = Callable[[str], str]
Run = Callable[..., Outcome]


@pytest.fixture
def run(home: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in this process."""
    return partial(weightyard_here, capsys)


def assert_fails(outcome: Outcome, code: int, says: str) -> None:
    """One line that names what is wrong, one hint, no traceback, nothing on stdout, and the code."""
    lines = [line for line in outcome.err.splitlines() if line]
    errors = [line for line in lines if line.startswith("error: ")]
    assert outcome.code == code, outcome.err
    assert len(errors) == 1, outcome.err
    assert says in errors[0]
    assert sum(line.startswith("  hint: ") for line in lines) == 1, outcome.err
    assert "Traceback" not in outcome.err
    assert outcome.out == ""


def no_weights(source: Path) -> None:
    (source / "model.safetensors").unlink()


def truncated(source: Path) -> None:
    with (source / "model.safetensors").open("r+b") as file:
        file.truncate(400)


def header_of_100_gigabytes(source: Path) -> None:
    (source / "model.safetensors").write_bytes((100 << 30).to_bytes(8, "little") + b"{}")


def forged_header(source: Path, document: object) -> None:
    header = json.dumps(document).encode()
    data = len(header).to_bytes(8, "little") + header + bytes(8)
    (source / "model.safetensors").write_bytes(data)


def tensor(start: int, stop: int, dtype: str = "U8") -> dict[str, object]:
    return {"dtype": dtype, "shape": [stop - start], "data_offsets": [start, stop]}


def overlapping(source: Path) -> None:
    forged_header(source, {"a": tensor(0, 8), "b": tensor(4, 8)})


def holes(source: Path) -> None:
    forged_header(source, {"a": tensor(0, 2), "b": tensor(4, 8)})


def beyond_the_end(source: Path) -> None:
    forged_header(source, {"a": tensor(0, 9)})


def unknown_dtype(source: Path) -> None:
    forged_header(source, {"a": tensor(0, 8, "I9")})


def trailing_bytes(source: Path) -> None:
    forged_header(source, {"a": tensor(0, 4)})


def no_json(source: Path) -> None:
    (source / "model.safetensors").write_bytes((4).to_bytes(8, "little") + b"{{{{")


def empty(source: Path) -> None:
    (source / "model.safetensors").write_bytes(b"")


def broken_config(source: Path) -> None:
    (source / "config.json").write_bytes(b"{")


def missing_shard(source: Path) -> None:
    shutil.rmtree(source)
    sharded(source)
    (source / "model-00002-of-00002.safetensors").unlink()


def other_tensors(source: Path) -> None:
    shutil.rmtree(source)
    sharded(source)
    (source / "model-00002-of-00002.safetensors").write_bytes(weights({"other": (4,)}))


def reserved_name(source: Path) -> None:
    write(source, {"models/config.json": b"{}"})


def dangling_link(source: Path) -> None:
    (source / "tokenizer.model").symlink_to("nowhere")


CHECKPOINTS = [
    (no_weights, "there are no safetensors weights"),
    (truncated, "truncated"),
    (header_of_100_gigabytes, "header claims 107374182400 bytes"),
    (overlapping, "overlaps"),
    (holes, "gap"),
    (beyond_the_end, "truncated"),
    (unknown_dtype, "unknown dtype"),
    (trailing_bytes, "follow the last tensor"),
    (no_json, "not valid JSON"),
    (empty, "only 0 bytes"),
    (broken_config, "config.json is not valid JSON"),
    (missing_shard, "names 'model-00002-of-00002.safetensors', which isn't there"),
    (other_tensors, "lists tensor"),
    (reserved_name, "reserved"),
    (dangling_link, "isn't there"),
]


@pytest.mark.parametrize(("damage", "says"), CHECKPOINTS)
def test_a_bad_checkpoint(
    tmp_path: Path,
    home: Path,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path], None],
    says: str,
) -> None:
    source = single(tmp_path / "source")
    damage(source)
    outcome = weightyard_here(capsys, "build", source, "--to", f"oci:{tmp_path}/out:v1")
    assert_fails(outcome, 6, says)
    assert not (tmp_path / "out").exists()


def assert_nothing_published(layout: Path) -> None:
    """No layout, not even an empty one; or one without a tag and without the leavings of a writer."""
    if layout.exists():
        assert Layout(layout).tags() == []
        assert not list(layout.rglob(".pending-*"))


def test_pickle_weights(run: Run, tmp_path: Path) -> None:
    source = single(tmp_path / "source")
    (source / "model.safetensors").unlink()
    (source / "pytorch_model.bin").write_bytes(pickle.dumps({}))
    outcome = run("build", source, "--to", f"oci:{tmp_path}/out:v1")
    assert_fails(outcome, 7, "pytorch_model.bin")
    assert "--convert-pickle" in outcome.err
    assert_nothing_published(tmp_path / "out")


@pytest.mark.parametrize(
    ("model", "options", "code", "says"),
    [
        (Model({"model_type": "llama"}, llama().shapes), (), 6, "names no architecture"),
        (llama("GPT2LMHeadModel", "gpt2"), (), 6, "Conv1D"),
        (Model(llama().config, {"a.q_proj.weight": (16, 40)}), (), 2, "nothing can be quantized"),
        (llama(), ("--engine", "llm-compressor"), 13, "llm-compressor isn't installed"),
        (llama(), ("--engine", "gptq", "--variant", "int8"), 2, "doesn't do int8"),
        # What can't be made comes before what is missing here.
        (llama("GPT2LMHeadModel", "gpt2"), ("--engine", "llm-compressor"), 6, "Conv1D"),
    ],
    ids=[
        "no architecture",
        "gpt2",
        "no group fits",
        "engine missing",
        "engine of another scheme",
        "gpt2 and engine missing",
    ],
)
def test_a_variant_that_cannot_be_made_is_refused_before_anything_is_packed(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    *,
    model: Model,
    options: tuple[str, ...],
    code: int,
    says: str,
) -> None:
    write_model(tmp_path / "src", model)
    to = f"oci:{tmp_path / 'out'}:v1"
    build = "build", tmp_path / "src", "--to", to, "--variant", "int4", *options
    outcome = weightyard_here(capsys, *build)
    assert_fails(outcome, code, says)
    assert "packing" not in outcome.err
    assert not list((tmp_path / "out").glob("blobs/*/*"))


def test_an_unknown_variant(run: Run, tmp_path: Path) -> None:
    source, to = single(tmp_path / "source"), f"oci:{tmp_path}/out:v1"
    outcome = run("build", source, "--to", to, "--variant", "int3")
    assert_fails(outcome, 8, "no variant 'int3'")
    assert_nothing_published(tmp_path / "out")
    assert run("build", source, "--to", to, "-q").code == 0
    assert_fails(run("inspect", to, "--variant", "int4"), 8, "no variant 'int4'")


def test_a_destination_that_can_not_be_written(run: Run, tmp_path: Path) -> None:
    source = single(tmp_path / "source")
    (tmp_path / "file").write_bytes(b"")
    outcome = run("build", source, "--to", f"oci:{tmp_path}/file/out:v1")
    assert_fails(outcome, 9, "can't write")


def test_a_destination_that_is_full_leaves_what_was_there(run: Run, tmp_path: Path) -> None:
    source, to = single(tmp_path / "source"), f"oci:{tmp_path}/out:v1"
    assert run("build", source, "--to", to, "-q").code == 0
    before = Layout(tmp_path / "out").resolve("v1")
    write(source, {"more.md": b"x" * 300_000})
    outcome = weightyard("build", source, "--to", to, largest_file=100_000)
    assert_fails(outcome, 10, "no space")
    layout = Layout(tmp_path / "out")
    assert layout.resolve("v1") == before
    assert not list((tmp_path / "out").rglob(".pending-*"))
    assert run("verify", to, "-q").code == 0


def test_space_is_asked_for_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(NoSpace, match=str(1 << 60)):
        check_space(tmp_path, 1 << 60)
    check_space(tmp_path, 1)


@pytest.mark.parametrize(
    "arguments",
    [
        ["build", "SOURCE", "--to", "UPPER/case"],
        ["build", "SOURCE", "--to", "oci:"],
        ["build", "SOURCE", "--to", "docker:"],
        ["build", "SOURCE", "--to", f"oci:out:{'x' * 128}"],
        ["build", "SOURCE", "--to", f"oci:out@sha256:{'0' * 64}"],
        ["build", "ftp://example/model", "--to", "oci:out"],
        ["build", "SOURCE", "--to", "oci:out", "--username", "me"],
        ["build", "SOURCE", "--to", "oci:out", "--username", "me", "--password-stdin"],
        ["build", "SOURCE", "--to", "oci:SOURCE/out:v1"],
        ["inspect", "docker:name"],
        ["verify", "oci:x:not a tag"],
    ],
)
def test_what_can_not_be_understood(
    tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    source = single(tmp_path / "source")
    given = [
        part.replace("SOURCE", str(source)).replace("oci:out", f"oci:{tmp_path}/out")
        for part in arguments
    ]
    outcome = weightyard_here(capsys, *given)
    assert outcome.code == 2, outcome.err
    assert "Traceback" not in outcome.err
    assert_nothing_published(tmp_path / "out")


def test_an_epoch_that_is_no_time(tmp_path: Path) -> None:
    source = single(tmp_path / "source")
    environment = {"SOURCE_DATE_EPOCH": "yesterday"}
    outcome = weightyard("build", source, "--to", f"oci:{tmp_path}/out", environment=environment)
    assert_fails(outcome, 2, "SOURCE_DATE_EPOCH")


def test_what_is_not_there(run: Run, tmp_path: Path) -> None:
    assert_fails(run("build", tmp_path / "no", "--to", f"oci:{tmp_path}/out"), 3, "no directory")
    assert_fails(run("inspect", f"oci:{tmp_path}/out:v1"), 3, "OCI layout directory")
    source = single(tmp_path / "source")
    assert run("build", source, "--to", f"oci:{tmp_path}/out:v1", "-q").code == 0
    assert_fails(run("inspect", f"oci:{tmp_path}/out:v2"), 3, "no tag 'v2'")


def test_a_malformed_layout(run: Run, tmp_path: Path) -> None:
    write(tmp_path / "out", {"oci-layout": b'{"imageLayoutVersion":"1.0.0"}', "index.json": b"[]"})
    outcome = run("inspect", f"oci:{tmp_path}/out:v1")
    assert outcome.code == 15, outcome.err


def test_a_damaged_blob_is_a_digest_mismatch(run: Run, tmp_path: Path) -> None:
    source, to = single(tmp_path / "source"), f"oci:{tmp_path}/out:v1"
    assert run("build", source, "--to", to, "-q").code == 0
    layout = Layout(tmp_path / "out")
    largest = max(layout.blobs(), key=lambda blob: blob[1])[0]
    path = layout.blob_path(largest)
    data = bytearray(path.read_bytes())
    data[700] ^= 1
    path.write_bytes(data)
    outcome = run("verify", to)
    assert_fails(outcome, 5, largest.hex)


@pytest.mark.servers
def test_wrong_credentials(
    tmp_path: Path, basic_registry: DockerRegistry, unique_name: UniqueName
) -> None:
    source = single(tmp_path / "source")
    to = f"{basic_registry.host}/{unique_name('bad')}:v1"
    home = {"HOME": str(tmp_path)}
    assert_fails(weightyard("build", source, "--to", to, environment=home), 4, "")
    wrong = weightyard(
        "build", source, "--to", to, "--username", "alice", "--password-stdin",
        environment=home, given="wrong\n",
    )  # fmt: skip
    assert_fails(wrong, 4, "")
    assert "wrong" not in wrong.err
    right = weightyard(
        "build", source, "--to", to, "--username", "alice", "--password-stdin", "-q",
        environment=home, given=f"{USERS['alice']}\n",
    )  # fmt: skip
    assert right.code == 0, right.err


@pytest.mark.servers
def test_a_registry_that_holds_other_bytes(
    run: Run, tmp_path: Path, registry: DockerRegistry, unique_name: UniqueName
) -> None:
    source, to = single(tmp_path / "source"), f"{registry.host}/{unique_name('bad')}:v1"
    built = run("build", source, "--to", to, "-q", "--json")
    assert built.code == 0, built.err
    assert_fails(run("inspect", f"{to}2"), 3, "")
    blob = registry.blob_path(built.json["digest"])
    good = blob.read_bytes()
    blob.write_bytes(good.replace(b"sha256", b"sha265", 1))
    outcome = run("inspect", to)
    blob.write_bytes(good)
    assert outcome.code in (5, 15, 16), outcome.err
    assert "Traceback" not in outcome.err


@pytest.mark.servers
def test_a_registry_with_a_damaged_layer(
    run: Run, tmp_path: Path, registry: DockerRegistry, unique_name: UniqueName
) -> None:
    source, to = single(tmp_path / "source"), f"{registry.host}/{unique_name('bad')}:v1"
    (source / "model.safetensors").write_bytes(weights({"of.this.test.alone": (1000,)}))
    assert run("build", source, "--to", to, "-q").code == 0
    record = run("inspect", to, "--json").json["record"]
    layer = next(each["digest"] for each in record["layers"] if each["role"] == "weight")
    path = registry.blob_path(layer)
    data = bytearray(path.read_bytes())
    data[900] ^= 1
    path.write_bytes(data)
    assert_fails(run("verify", to), 5, layer)


def test_a_registry_that_does_not_answer(run: Run, tmp_path: Path) -> None:
    source = single(tmp_path / "source")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{unused.getsockname()[1]}"
        assert_fails(run("build", source, "--to", f"{host}/x:v1"), 11, host)


@pytest.mark.servers
def test_a_hub_that_refuses(tmp_path: Path, hub: Hub, unique_name: UniqueName) -> None:
    name = unique_name("org/bad")
    environment = {"HF_ENDPOINT": hub.url, "HOME": str(tmp_path)}

    def build(revision: str = "") -> Outcome:
        arguments = ("build", f"hf://{name}{revision}", "--to", f"oci:{tmp_path}/out:v1")
        return weightyard(*arguments, environment=environment)

    assert_fails(build(), 3, name)
    hub.add(name, single(tmp_path / "source"), gated=True)
    assert_fails(build("@nothing"), 3, "no such revision")
    assert_fails(build(), 4, "gated")
    assert_nothing_published(tmp_path / "out")


@pytest.mark.servers
def test_a_hub_whose_file_is_not_what_it_says(
    tmp_path: Path, hub: Hub, unique_name: UniqueName
) -> None:
    name = unique_name("org/lying")
    source = single(tmp_path / "source")
    hub.add(name, source)
    path = source / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    outcome = weightyard(
        "build", f"hf://{name}", "--to", f"oci:{tmp_path}/out:v1",
        environment={"HF_ENDPOINT": hub.url, "HOME": str(tmp_path)},
    )  # fmt: skip
    assert_fails(outcome, 5, "model.safetensors")
    assert_nothing_published(tmp_path / "out")


def test_an_empty_source_is_not_the_current_directory(
    tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = weightyard_here(capsys, "build", "", "--to", f"oci:{tmp_path}/out:v1")
    assert done.code == 2
    assert "SOURCE is empty" in done.err
