"""Layers over each other: what wins, what is hidden, where links lead, and what must not get out."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelimage.errors import InvalidImage
from modelimage.foreign.limits import Limits
from modelimage.foreign.overlay import OverlaidFiles, Tree
from modelimage.foreign.tarwalk import MemberKind, TarMember


def file(path: str, size: int = 1) -> TarMember:
    return TarMember(path, MemberKind.FILE, size)


def folder(path: str) -> TarMember:
    return TarMember(path, MemberKind.DIRECTORY)


def link(path: str, target: str) -> TarMember:
    return TarMember(path, MemberKind.SYMLINK, target=target)


def hard(path: str, target: str) -> TarMember:
    return TarMember(path, MemberKind.HARDLINK, target=target)


def device(path: str) -> TarMember:
    return TarMember(path, MemberKind.SPECIAL)


def stack(
    *layers: Iterable[TarMember], root: str = "", overlay: bool = True, limits: Limits | None = None
) -> OverlaidFiles:
    tree = Tree(overlay=overlay, limits=limits or Limits())
    for number, members in enumerate(layers):
        tree.add(number, list(members))
    return tree.view(root)


def seen(view: OverlaidFiles) -> dict[str, tuple[int, int]]:
    """Path -> (layer, member)."""
    return {path: (node.layer, node.member) for path, node in view.files}


def test_later_layers_win() -> None:
    assert seen(stack([file("a"), file("b")], [file("a", 2)])) == {"a": (1, 0), "b": (0, 1)}


def test_the_last_of_two_in_one_layer_wins() -> None:
    assert seen(stack([file("a"), file("a")])) == {"a": (0, 1)}


def test_a_whiteout_hides_what_is_below() -> None:
    view = stack([file("a/b"), file("a/c"), file("d/e")], [file("a/.wh.b"), file(".wh.d")])
    assert seen(view) == {"a/c": (0, 1)}


@pytest.mark.parametrize("first", [True, False])
def test_a_whiteout_hides_nothing_of_its_own_layer(first: bool) -> None:
    layer = [file("a/.wh.b"), file("a/b")]
    view = stack([file("a/b")], layer if first else layer[::-1])
    assert seen(view) == {"a/b": (1, 1 if first else 0)}


@pytest.mark.parametrize("first", [True, False])
def test_an_opaque_directory_hides_all_that_is_below(first: bool) -> None:
    layer = [file("a/.wh..wh..opq"), file("a/d")]
    view = stack([file("a/b"), file("a/c/x"), file("z")], layer if first else layer[::-1])
    assert seen(view) == {"a/d": (1, 1 if first else 0), "z": (0, 2)}


def test_a_whiteout_of_a_whole_tree_then_another() -> None:
    assert seen(stack([file("a/b")], [file(".wh.a")], [file("a/c")])) == {"a/c": (2, 0)}


def test_what_aufs_left_behind_is_no_file() -> None:
    assert seen(stack([file("a")], [file(".wh..wh.plnk"), file(".wh..wh.aufs")])) == {"a": (0, 0)}


def test_a_whiteout_of_nothing_hides_nothing() -> None:
    assert seen(stack([file("a")], [file(".wh.b"), file("x/.wh.y"), file("a/.wh.c")])) == {
        "a": (0, 0)
    }


@pytest.mark.parametrize("path", [".wh.", ".wh..", ".wh...", "a/.wh..."])
def test_a_malformed_whiteout(path: str) -> None:
    with pytest.raises(InvalidImage):
        stack([file("a/b")], [file(path)])


def test_a_directory_replaces_a_file_and_the_other_way_round() -> None:
    assert seen(stack([file("a")], [folder("a"), file("a/b")])) == {"a/b": (1, 1)}
    assert seen(stack([file("a/b")], [file("a")])) == {"a": (1, 0)}


def test_a_directory_named_again_keeps_what_it_holds() -> None:
    assert seen(stack([file("a/b")], [folder("a")])) == {"a/b": (0, 0)}


def test_hard_links_share_their_file() -> None:
    view = stack([file("a", 7), hard("b", "a"), hard("c", "b")], [file("a")])
    assert seen(view) == {"a": (1, 0), "b": (0, 0), "c": (0, 0)}


@pytest.mark.parametrize("target", ["nothing", "d", "a/x"])
def test_a_hard_link_to_no_file(target: str) -> None:
    with pytest.raises(InvalidImage, match="hard link"):
        stack([file("a"), folder("d"), hard("b", target)])


@pytest.mark.parametrize("target", ["a", "a/b"])
def test_a_hard_link_does_not_replace_its_own_file(target: str) -> None:
    with pytest.raises(InvalidImage, match="hard link"):
        stack([file(target), hard("a", target)])


def test_a_hard_link_comes_after_its_file() -> None:
    with pytest.raises(InvalidImage, match="hard link"):
        stack([hard("b", "a"), file("a")])


@pytest.mark.parametrize(
    ("place", "target"),
    [
        ("b", "a"), ("d/b", "../a"), ("d/b", "/a"), ("b", "./d/.././a"), ("d/e/b", "../../a"), ("b", "next"),
        ("b", "here/a"), ("d/b", "/here/here/a"),
    ],
)  # fmt: skip
def test_a_symbolic_link_to_a_file_inside(place: str, target: str) -> None:
    view = stack(
        [file("a"), folder("d/e"), link("next", "a"), link("here", "."), link(place, target)]
    )
    assert seen(view)[place] == (0, 0)


@pytest.mark.parametrize("target", ["nothing", "b", "b/c", "/proc/self/mounts", "a/x", "loop1"])
def test_a_symbolic_link_to_nothing_is_left_out(target: str) -> None:
    view = stack([file("a"), link("loop1", "loop2"), link("loop2", "loop1"), link("b", target)])
    assert seen(view) == {"a": (0, 0)}
    assert "b" in view.left_out


def test_a_symbolic_link_to_a_directory_shows_what_is_in_it() -> None:
    view = stack([file("d/x"), link("d/up", ".."), link("e", "d"), link("f/g", "../e/")])
    assert seen(view) == dict.fromkeys(("d/x", "e/x", "f/g/x"), (0, 0))
    assert "d/up" in view.left_out


def test_our_own_link_to_the_root_is_not_walked_in_circles() -> None:
    view = stack([link("models", ".")], [file("a")], root="models")
    assert seen(view) == {"a": (1, 0)}
    assert set(view.left_out) == {"models"}


def test_links_that_multiply_are_refused() -> None:
    members = [file("d40/x")]
    for depth in range(40):
        members += [folder(f"d{depth}"), link(f"d{depth}/a", f"../d{depth + 1}")]
        members += [link(f"d{depth}/b", f"../d{depth + 1}")]
    with pytest.raises(InvalidImage, match="entries"):
        stack(members, root="d0", limits=Limits(members=1000))


def test_links_through_many_names_are_refused() -> None:
    """Each leads through forty others of thousands of names: a layer of megabytes would take hours."""
    members = [folder("x"), file("l40")]
    members += [link(f"l{number}", "x/../" * 800 + f"l{number + 1}") for number in range(40)]
    members += [link(f"m{number}", "l1") for number in range(100_000 - len(members))]
    with pytest.raises(InvalidImage, match="too many names"):
        stack(members, limits=Limits(link_steps=200_000))


ESCAPES = {
    "a link above the root": [link("a", "../x")],
    "a link above the root from below": [folder("d"), link("d/a", "../../x")],
    "a link through a link above the root": [link("here", "."), link("a", "here/../../x")],
    "a link up and down again": [link("a", "../" * 50 + "etc/passwd")],
    "a file below a link": [folder("d"), link("l", "d"), file("l/x")],
    "a file below a link out": [link("l", "/etc"), file("l/passwd")],
    "a link below a link": [link("l", "."), link("l/m", "x")],
    "a directory below a link": [folder("d"), link("l", "d"), folder("l/x")],
    "a hard link below a link": [file("a"), link("l", "."), hard("l/b", "a")],
    "a hard link through a link": [file("d/a"), link("l", "d"), hard("b", "l/a")],
    "a file below a file": [file("a"), file("a/b")],
    "a device": [device("null")],
    "a hard link to a device": [device("d/null"), hard("b", "d/null")],
    "a backslash": [file("a\\b")],
    "a control character": [file("a\nb")],
    "a name that isn't UTF-8": [file("\udcff")],
    "an overlong path": [file("/".join(["d" * 100] * 12))],
}


@pytest.mark.parametrize("overlay", [True, False])
@pytest.mark.parametrize("name", ESCAPES)
def test_what_would_leave_its_place_is_refused(name: str, overlay: bool) -> None:
    with pytest.raises(InvalidImage):
        stack([file("fine"), *ESCAPES[name]], overlay=overlay)


@pytest.mark.parametrize("name", ESCAPES)
def test_what_is_outside_of_the_model_is_none_of_our_business(name: str) -> None:
    below = [
        TarMember(
            f"usr/{m.path}", m.kind, m.size, target=f"usr/{m.target}" if m.kind is MemberKind.HARDLINK else m.target
        )
        for m in ESCAPES[name]
    ]  # fmt: skip
    assert seen(stack([file("models/a"), *below], root="models")) == {"a": (0, 0)}


def test_a_link_into_the_model_from_a_layer_above_is_refused() -> None:
    with pytest.raises(InvalidImage, match="below a link"):
        stack([file("w/a"), link("models", "w")], [file("models/b")], root="models")


def test_a_link_out_of_the_model_but_inside_the_image() -> None:
    view = stack(
        [file("mnt/a"), link("models/a", "/mnt/a"), link("models/b", "../mnt")], root="models"
    )
    assert seen(view) == {"a": (0, 0), "b/a": (0, 0)}


def test_an_artifact_has_no_root_for_absolute_links() -> None:
    with pytest.raises(InvalidImage, match="absolute"):
        stack([file("a"), link("b", "/a")], overlay=False)


def test_an_artifact_names_each_path_once() -> None:
    with pytest.raises(InvalidImage, match="twice"):
        stack([file("a")], [file("a")], overlay=False)
    with pytest.raises(InvalidImage, match="twice"):
        stack([file("a/b")], [file("a")], overlay=False)


def test_an_artifact_knows_no_whiteouts() -> None:
    assert set(seen(stack([file("a")], [file(".wh.a")], overlay=False))) == {"a", ".wh.a"}


def test_a_root_that_is_a_file() -> None:
    with pytest.raises(InvalidImage, match="not a directory"):
        stack([file("models")], root="models")


PATHS = st.lists(st.sampled_from("abc"), min_size=1, max_size=3).map("/".join)
LAYERS = st.lists(
    st.lists(st.tuples(st.sampled_from(["file", "folder", "hide", "opaque"]), PATHS), max_size=6),
    max_size=4,
)


@given(layers=LAYERS)
def test_overlay_agrees_with_a_plain_model(layers: list[list[tuple[str, str]]]) -> None:
    """The model: a set of paths with what each is, changed by the rules of the specification one by one."""
    model: dict[str, tuple[int, int] | None] = {}
    stacked, agreed = [], True
    for number, entries in enumerate(layers):
        members = [_member(*entry) for entry in entries]
        for kind, path in entries:
            _model_hide(model, kind, path)
        for position, (kind, path) in enumerate(entries):
            if kind in ("file", "folder"):
                agreed &= _model_put(model, kind, path, (number, position))
        stacked.append(members)
    if not agreed:
        with pytest.raises(InvalidImage):
            stack(*stacked)
        return
    assert seen(stack(*stacked)) == {path: node for path, node in model.items() if node}


def _member(kind: str, path: str) -> TarMember:
    parent, _, name = path.rpartition("/")
    prefix = f"{parent}/" if parent else ""
    match kind:
        case "file":
            return file(path)
        case "folder":
            return folder(path)
        case "hide":
            return file(f"{prefix}.wh.{name}")
        case _:
            return file(f"{path}/.wh..wh..opq")


def _model_hide(model: dict[str, tuple[int, int] | None], kind: str, path: str) -> None:
    if kind not in ("hide", "opaque"):
        return
    for known in list(model):
        if known.startswith(f"{path}/") or (kind == "hide" and known == path):
            del model[known]


def _model_put(
    model: dict[str, tuple[int, int] | None], kind: str, path: str, node: tuple[int, int]
) -> bool:
    """False when the path lies below a file."""
    parts = path.split("/")
    above = ["/".join(parts[:count]) for count in range(1, len(parts))]
    for parent in above:
        if model.setdefault(parent, None) is not None:
            return False
    if kind == "folder" and path in model and model[path] is None:
        return True
    for known in list(model):
        if known.startswith(f"{path}/"):
            del model[known]
    model[path] = node if kind == "file" else None
    return True
