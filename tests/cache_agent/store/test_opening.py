"""Opening a store that fails, a repair beside a new lease, and what /proc says of a lease's holder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cache_agent.errors import DiskFailed
from cache_agent.leases.holders import Machine, ProcessName
from cache_agent.store.ledger import Ledger
from cache_agent.store.store import Store, StoreOptions
from cache_agent.store.values import Holder, HolderKind, Use
from tests.cache_agent.images import simple_image
from tests.cache_agent.nodes import BOOT, ROOMY, NodeFactory, pull


def open_files(root: Path) -> list[str]:
    links = []
    for fd in Path("/proc/self/fd").iterdir():
        try:
            links.append(str(fd.readlink()))
        except FileNotFoundError:  # the descriptor that lists them
            continue
    return [link for link in links if link.startswith(f"{root}/")]


def test_an_error_after_recovery_leaves_neither_lock_nor_ledger_open(
    open_node: NodeFactory, root: Path
) -> None:
    image, record, _ = simple_image(weights=[100])
    node = open_node({"reg.test/m": image})
    pull(node)
    node.close()
    for path in root.glob("ledger.db*"):
        path.unlink()

    def unreadable(models: Path) -> Iterable[Use]:
        raise DiskFailed("can't read who uses the models")

    with pytest.raises(DiskFailed, match="who uses"):
        Store(root, StoreOptions(ROOMY, lambda: 0.0, boot=BOOT, users=unreadable))
    assert open_files(root) == []
    assert [model.key for model in open_node({}).store.models.all()] == [record.key]


@pytest.mark.parametrize("kind", ["file", "link"])
def test_what_is_in_the_place_of_the_quarantine_goes_there(
    open_node: NodeFactory, root: Path, tmp_path: Path, kind: str
) -> None:
    open_node({}).close()
    place = root / "quarantine"
    place.rmdir()
    (tmp_path / "elsewhere").mkdir()
    if kind == "file":
        place.write_text("x")
    else:
        place.symlink_to(tmp_path / "elsewhere")
    node = open_node({})
    assert [each.name for each in place.iterdir()] == [".quarantine.0"]
    assert list((tmp_path / "elsewhere").iterdir()) == []
    assert node.check().findings == []


def test_a_broken_model_that_is_leased_meanwhile_is_not_set_aside(
    open_node: NodeFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, record, _ = simple_image(weights=[100])
    node = open_node({"reg.test/m": image})
    path = pull(node).path
    store, exclusive = node.store.first, Ledger.exclusive
    (path / "config.json").unlink()

    @contextmanager
    def leased_before(ledger: Ledger) -> Iterator[None]:
        store.leases.take_all([Use(record.key, Holder.parse("pod:a"), "lease")])
        with exclusive(ledger):
            yield

    with monkeypatch.context() as patched:
        patched.setattr(Ledger, "exclusive", leased_before)
        assert store.repairer.drop_broken_models() == []
    assert path.is_dir()
    store.leases.release_all(["lease"])
    assert store.repairer.drop_broken_models() == [record.key]
    assert store.models.all() == []


@pytest.mark.parametrize(
    ("stat", "gone"),
    [
        (b"7 (a) b (\xff) S " + b" ".join(b"%d" % n for n in range(2, 40)), False),
        (b"7 (other) S " + b" ".join(b"%d" % n for n in range(3, 40)), True),
        (b"7 (cut off", False),
        (None, True),
    ],
)
def test_a_process_is_gone_only_when_proc_says_so(
    tmp_path: Path, stat: bytes | None, gone: bool
) -> None:
    boot = tmp_path / "sys/kernel/random/boot_id"
    boot.parent.mkdir(parents=True)
    boot.write_text("this-boot\n")
    (tmp_path / "7").mkdir()
    if stat is not None:
        (tmp_path / "7" / "stat").write_bytes(stat)
    name = ProcessName(7, "20", "this-boot")
    holder = Holder(HolderKind.PROCESS, str(name))
    assert Machine(proc=tmp_path).is_gone(holder) is gone


def test_opening_and_checking_ask_for_no_more_directories_than_there_are(
    open_node: NodeFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There may be 256: an almost empty store would spend most of its start on them."""
    image, _, contents = simple_image(weights=[100])
    node = open_node({"reg.test/m": image})
    pull(node)
    node.close()
    asked: list[str] = []
    digests = Ledger.file_digests
    monkeypatch.setattr(
        Ledger, "file_digests", lambda self, prefix: asked.append(prefix) or digests(self, prefix)
    )
    node = open_node({})
    assert len(asked) <= len(contents) + 1
    opened = len(asked)
    assert node.check().findings == []
    assert asked[opened:] == asked[:opened]
