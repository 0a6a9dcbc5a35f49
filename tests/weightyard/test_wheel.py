"""The built wheel among distributions that have packages of the same names, in a directory full of such files."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers.process import child_environment
from tests.synthetic import synthetic_checkpoint
from tests.weightyard.local import FAKE_ENGINE, workspace
from weightyard.cli import entries

REPOSITORY = Path(__file__).parents[2]
PACKAGES = ("modelimage", "quantize", "builder", "cache_agent", "workspace")
STRANGER = 'raise ImportError("this is the package of a stranger")\n'
# Building and installing the wheel takes pip, and its index the first time.
pytestmark = [pytest.mark.servers, pytest.mark.slow]

LOAD_ALL = """
import contextlib, io, json, sys
from weightyard import cli
codes = {}
for name in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()):
        codes[name] = cli.main([name, "--help"])
ours = json.loads(sys.argv[2])
where = {sys.modules[each].__file__ for each in sys.modules if each.split(".")[0] in ours}
print(json.dumps([codes, sorted(where)]))
"""
CHILDREN = """
import multiprocessing, subprocess
import weightyard
from modelimage.child import python_module
from modelimage.digest import Digest
if __name__ == "__main__":
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(Digest.parse, ["sha256:" + "0" * 64]).hex == "0" * 64
    subprocess.run(python_module("quantize.errors"), check=True)
"""


class Environment:
    """A fresh virtual environment over the installed requirements, and the user who works in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", path], check=True)
        site = next((path / "lib").glob("python3*/site-packages"))
        # The requirements come from here: a path file's paths are searched last, and their own aren't read.
        (site / "beneath.pth").write_text(sysconfig.get_path("purelib") + "\n")
        self.home = path / "home"
        self.home.mkdir()

    @property
    def python(self) -> str:
        return str(self.path / "bin" / "python")

    def pip(self, *arguments: str | Path) -> None:
        command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
        subprocess.run([*command, "--python", self.python, *arguments], check=True)

    def run(self, *command: str | Path, cwd: Path) -> str:
        """Run a command to a good end; its stdout."""
        environment = child_environment(self.home, WEIGHTYARD_ROOT=str(self.home / "root"))
        # Only the stand-in for vLLM: the checkout must not be found.
        environment |= {"PYTHONPATH": str(FAKE_ENGINE), "FAKE_ENGINE": ""}
        environment["PATH"] = f"{self.path / 'bin'}:{environment['PATH']}"
        done = subprocess.run(
            command, cwd=cwd, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


def stranger_wheel(folder: Path, package: str) -> Path:
    """A wheel of a distribution that owns `package`."""
    name = f"stranger_{package}"
    info = f"{name}-1.0.dist-info"
    files = {
        f"{package}/__init__.py": STRANGER,
        f"{package}/errors.py": STRANGER,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{each},,\n" for each in [*files, f"{info}/RECORD"])
    path = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for each, text in files.items():
            wheel.writestr(each, text)
    return path


@pytest.fixture(scope="module")
def strangers(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("strangers")
    return [stranger_wheel(folder, package) for package in PACKAGES]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
    subprocess.run([*pip, "--wheel-dir", folder, REPOSITORY], check=True)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    environment = Environment(tmp_path_factory.mktemp("installed") / "venv")
    environment.pip("install", "--no-deps", "--no-index", wheel)
    return environment


@pytest.fixture(params=["strangers installed", "strangers uninstalled"])
def among_strangers(
    request: pytest.FixtureRequest, installed: Environment, strangers: list[Path]
) -> Iterator[Environment]:
    installed.pip("install", "--no-deps", "--no-index", "--force-reinstall", *strangers)
    names = [f"stranger_{package}" for package in PACKAGES]
    if request.param == "strangers uninstalled":
        installed.pip("uninstall", "--yes", *names)
        yield installed
    else:
        yield installed
        installed.pip("uninstall", "--yes", *names)


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A working directory with a file or a folder for each of our packages' names."""
    for package in PACKAGES:
        (tmp_path / f"{package}.py").write_text(STRANGER)
    (tmp_path / "builder").mkdir()
    (tmp_path / "builder" / "__init__.py").write_text(STRANGER)
    return tmp_path


def test_the_wheel_owns_one_name(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"weightyard"}
    here = {
        str(path.relative_to(REPOSITORY))
        for package in PACKAGES
        for path in (REPOSITORY / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    prefix = "weightyard/_packages/"
    assert {name.removeprefix(prefix) for name in names if name.startswith(prefix)} == here
    assert "weightyard/py.typed" in names


def check_all_commands_load(environment: Environment, packages: Path, cwd: Path) -> None:
    arguments = json.dumps(list(entries())), json.dumps(PACKAGES)
    output = environment.run(environment.python, "-c", LOAD_ALL, *arguments, cwd=cwd)
    codes, where = json.loads(output)
    assert codes == dict.fromkeys(entries(), 0)
    assert where
    assert all(Path(each).is_relative_to(packages) for each in where)


def test_every_command_loads(among_strangers: Environment, hostile: Path) -> None:
    site = next((among_strangers.path / "lib").glob("python3*/site-packages"))
    check_all_commands_load(among_strangers, site / "weightyard" / "_packages", hostile)


def test_an_editable_installation_finds_the_checkout(
    strangers: list[Path], hostile: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    environment = Environment(tmp_path_factory.mktemp("editable") / "venv")
    environment.pip("install", "--no-deps", "--editable", REPOSITORY)
    environment.pip("install", "--no-deps", "--no-index", *strangers)
    check_all_commands_load(environment, REPOSITORY, hostile)


def test_mlflow_finds_its_plugin(installed: Environment, tmp_path: Path) -> None:
    script = (
        "from mlflow.deployments import get_deploy_client\n"
        "client = get_deploy_client('weightyard:/local')\n"
        "print(client.list_deployments(), client.__class__.__module__)"
    )
    told = installed.run(installed.python, "-c", script, cwd=tmp_path)
    assert told.splitlines()[-1] == "[] weightyard.mlflow_deployments.client"


def test_programs_other_than_the_command(among_strangers: Environment, hostile: Path) -> None:
    python = among_strangers.python
    assert "weightyard" in among_strangers.run(python, "-m", "weightyard", "version", cwd=hostile)
    script = "import weightyard; print(weightyard.Cache('nowhere').models(), weightyard.build)"
    assert "[] <function build" in among_strangers.run(python, "-c", script, cwd=hostile)
    usage = among_strangers.run(python, "-m", "weightyard.mounter", "--help", cwd=hostile)
    assert "--socket" in usage
    program = hostile / "program"
    program.write_text(CHILDREN)
    among_strangers.run(python, str(program), cwd=hostile)


def test_from_a_checkpoint_to_a_server(among_strangers: Environment, hostile: Path) -> None:
    # Modules of the standard library and of requirements, too: the command's children search no working directory.
    for name in ("json", "click", "vllm"):
        (hostile / f"{name}.py").write_text(STRANGER)
    synthetic_checkpoint(hostile / "checkpoint", total_bytes=1_000_000)
    image = f"oci:{hostile}/image:v1"
    among_strangers.run("weightyard", "build", "checkpoint", "--to", image, cwd=hostile)
    assert "bf16" in among_strangers.run("weightyard", "inspect", image, cwd=hostile)
    file = workspace(hostile, "tiny", image)
    among_strangers.run("weightyard", "up", "-d", file, "--port", "0", cwd=hostile)
    try:
        assert "ready" in among_strangers.run("weightyard", "ps", cwd=hostile)
    finally:
        among_strangers.run("weightyard", "down", "tiny", cwd=hostile)
