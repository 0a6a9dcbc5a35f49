"""What `up` and `render` take: a file, whose images are relative to it, or a model named without one."""

from __future__ import annotations

import itertools
import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from modelimage.errors import InvalidInput, NotFound
from modelimage.layout import Layout
from tests.weightyard.local import Terminal, empty_store, workspace
from tests.workspace import samples
from weightyard.cli import entries, main
from weightyard.cli import weightyard as program
from weightyard.console import Console
from weightyard.given_workspace import read_workspace, workspace_name
from weightyard.topics import TOPICS
from weightyard.workspace_names import workspace_named
from workspace.schema import Workspace


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("hf://Org/Llama-3.1-8B", "llama-3-1-8b"), ("hf://org/x@main", "x"), ("s3://bucket/a/b/", "b"),
        ("localhost:5000/team/model:v1", "model"), ("registry.example/m@sha256:00", "m"),
        ("oci:out:v1", "out"), ("oci:./a/img:v1", "img"), ("/x/7B_chat", "model-7b-chat"),
    ],
)  # fmt: skip
def test_a_model_names_its_workspace(model: str, name: str) -> None:
    assert workspace_name(model) == name


def test_models_without_a_file() -> None:
    hub = read_workspace("hf://org/Name@main", name=None)
    assert hub.workspace.spec.model.hub == "org/Name@main"
    assert hub.workspace.name == "name"
    image = read_workspace("registry.example/team/m:v1", name="chat")
    assert (image.workspace.name, image.workspace.spec.model.image) == (
        "chat", "registry.example/team/m:v1",
    )  # fmt: skip


def test_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_image: str) -> None:
    monkeypatch.chdir(tmp_path)
    layout = tiny_image.removeprefix("oci:").removesuffix(":v1")
    assert read_workspace(layout, name="x").workspace.spec.model.image == tiny_image
    # Signatures have tags too, and are no images to choose from.
    signed = Layout(Path(shutil.copytree(layout, tmp_path / "signed")))
    image = signed.resolve("v1")
    for tag in (f"sha256-{image.digest.hex}", f"sha256-{image.digest.hex}.sig"):
        signed.put_manifest(image, signed.manifest(image), tag)
    found = read_workspace("signed", name="x").workspace.spec.model.image
    assert found == f"oci:{tmp_path / 'signed'}:v1"
    (tmp_path / "model").mkdir()
    with pytest.raises(NotFound, match=r"^model is a directory, but"):
        read_workspace("model", name=None)
    (tmp_path / "model" / "config.json").write_text("{}")
    assert read_workspace("model", name=None).checkpoint == tmp_path / "model"


@pytest.mark.parametrize("given", ["nowhere.yaml", "nowhere", "./nowhere", "org/name", "a/b.yml"])
def test_what_is_not_there_is_named_as_given(given: str) -> None:
    with pytest.raises(NotFound, match=f"^no file (or directory )?{given}$") as caught:
        read_workspace(given, name=None)
    assert caught.value.hint


def test_an_image_is_relative_to_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "there" / "out").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    adapter = {"adapters": [{"name": "a", "image": "oci:out:v2"}]}
    workspace(tmp_path / "there", "tiny", "oci:./out:v1", runtime=adapter)
    found = read_workspace("../there/tiny.yaml", name=None).workspace.spec
    assert Path(str(found.model.image).removeprefix("oci:").removesuffix(":v1")).samefile(
        tmp_path / "there" / "out"
    )
    assert found.runtime.adapters[0].image.endswith("there/out:v2")
    workspace(tmp_path / "there", "lost", "oci:gone:v1")
    with pytest.raises(
        NotFound, match=r"^\.\./there/lost\.yaml: spec\.model\.image names oci:gone:v1"
    ):
        read_workspace("../there/lost.yaml", name=None)


def test_a_checkpoint_is_served_from_its_directory(terminal: Terminal, tiny_image: str) -> None:
    checkpoint = Path(tiny_image.removeprefix("oci:")).parent / "checkpoint"
    terminal.ok("up", "-d", str(checkpoint), "--cpu", "--name", "tiny", "--port", "0")
    assert terminal.state("tiny") == "ready"


@pytest.mark.parametrize(
    ("model", "hint"),
    [("org/name", "write hf://org/name"), ("mistral", "hf://ORG/NAME"),
     ("./nowhere", "directory of a checkpoint"), ("..", "weightyard build"),
     ("https://huggingface.co/org/name/tree/main", "hf://org/name"), ("docker:x:v1", "registry"),
     ("http://registry.example/a:v1", "as registry.example/a:v1")],
)  # fmt: skip
def test_init_refuses_what_up_would_refuse(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    model: str,
    hint: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["init", model]) in (2, 3)
    assert hint in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_init_writes_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["init", "registry.example/m:v1", "--gpus", "0"]) == 0
    written = read_workspace("workspace.yaml", name=None).workspace
    assert (written.name, written.spec.resources.gpus) == ("m", 0)
    assert main(["init"]) == 2
    assert main(["init", "--force"]) == 0
    assert read_workspace("workspace.yaml", name=None).workspace.spec.model.hub
    with pytest.raises(InvalidInput, match="no workspace 'x'"):
        read_workspace("workspace.yaml", name="x")


def test_help_has_topics_and_commands() -> None:
    assert not set(TOPICS) & set(entries())
    for topic in (*TOPICS, "build", None):
        done = CliRunner().invoke(program, ["help", *([topic] if topic else [])], obj=Console())
        assert done.exit_code == 0
        assert done.output.strip()
        # A page is prose: an object that was formatted by mistake shows its constructor.
        assert not re.search(r"\w\(\w+=|<\w[\w.]* (object|at) |<function", done.output)
    assert main(["help", "exit-kodes"]) == 2
    assert main(["help", "rollout", "und"]) == 2
    # Subcommands as they are typed; and no range of a number that has no bounds.
    for words in (["rollout", "undo"], ["quantize"]):
        done = CliRunner().invoke(program, ["help", *words], obj=Console())
        assert done.output.startswith(f"Usage: weightyard {' '.join(words)} [OPTIONS]")
    done = CliRunner().invoke(program, ["quantize", "--help-all"], obj=Console())
    assert "--min-sqnr" in done.output
    assert "None" not in done.output
    assert json.loads(CliRunner().invoke(program, ["help", "--json"], obj=Console()).output)[
        "topics"
    ]


@pytest.mark.parametrize(
    ("topic", "fields"),
    [
        ("nodes", ["resources.provisioning.warmSpares (0)", 'capacity.spot ("preferred")']),
        ("template", ["template.sidecars[].image", 'whenUnsatisfiable ("DoNotSchedule")']),
        ("rollouts", ["rollout.steps[].weight", "maxRegression.timeToFirstToken (0.25)"]),
    ],
)
def test_a_topic_of_fields_tells_each_and_its_example_is_a_workspaces(
    topic: str, fields: list[str]
) -> None:
    text = TOPICS[topic][1]()
    assert [each for each in fields if each not in text] == []
    head, *lines = text.splitlines()
    assert head.endswith("in spec of a Workspace:")
    example = "\n".join(itertools.takewhile(lambda line: line.startswith("  "), lines))
    spec = samples.document()["spec"] | yaml.safe_load(example)
    assert Workspace.model_validate(samples.document() | {"spec": spec})


def test_up_and_render_take_a_workspace_alike(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = str(tmp_path / "none.yaml")
    for command in (["up"], ["render", "--to", "up"]):
        for words in ([missing], ["-f", missing], ["--file", missing]):
            assert main([*command, *words]) == 3
            assert f"no file {missing}" in capsys.readouterr().err
        assert main(command) == 2
        assert "Missing argument 'WORKSPACE'" in capsys.readouterr().err
        assert main([*command, "a.yaml", "-f", "b.yaml"]) == 2
        assert "Name one workspace: a.yaml, or -f b.yaml." in capsys.readouterr().err


def test_a_missing_choice_is_told_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["render", "w.yaml"]) == 2
    assert "Choose from: kubernetes, compose, llm-d" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("down", "{file}"), "chat: not running"),
        (("logs", "{file}"), "workspace 'chat' has no server log here"),
        (("explain", "{file}"), "'chat' is unknown on this node"),
    ],
)
def test_a_file_stands_for_the_name_in_it(
    tmp_root: Path, words: tuple[str, ...], says: str
) -> None:
    """What was started by its file is stopped and looked at by it."""
    terminal = Terminal(tmp_root)
    empty_store(terminal.root)
    file = workspace(tmp_root, "chat", "oci:img:v1")
    done = terminal.run(*(word.format(file=file) for word in words))
    assert says in done.stdout + done.stderr


def test_a_file_in_place_of_a_name_is_read_as_any_other(tmp_root: Path) -> None:
    for text, says in [("kind: [", "not valid YAML"), ("", "no document")]:
        (tmp_root / "w.yaml").write_text(text)
        with pytest.raises(InvalidInput, match=says):
            workspace_named(str(tmp_root / "w.yaml"))
    with pytest.raises(NotFound):
        workspace_named(str(tmp_root / "missing.yml"))
    assert workspace_named("chat") == "chat"
