"""Overlays the layers of an image: one tree of files, as seen by a container that runs the image. Pure.

OCI image-spec v1.1, layer.md: later layers win; `.wh.NAME` hides NAME of the layers below, `.wh..wh..opq` everything
they have in a directory. A model artifact isn't an overlay: in it, a path that occurs twice is an error.

Links are resolved here, inside the tree, and nothing is ever written through one. A link that leaves the tree is
refused, and so is a member whose parent is a link, because runtimes disagree on its location. Devices and similar
members are refused inside the model and ignored elsewhere, for example in a base image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from modelimage.errors import InvalidImage
from modelimage.foreign.limits import Limits
from modelimage.foreign.tarwalk import MAX_DEPTH, MemberKind, TarMember
from modelimage.path_rules import check_path

_WHITEOUT: Final = ".wh."
_AUFS: Final = ".wh..wh."
_OPAQUE: Final = ".wh..wh..opq"
_MAX_LINKS: Final = 40


@dataclass(frozen=True, slots=True)
class FileNode:
    """A regular file: its layer and member by number, and its size in bytes."""

    layer: int
    member: int
    size: int


@dataclass(frozen=True, slots=True)
class LinkNode:
    """A symbolic link with its target as stored."""

    target: str


@dataclass(frozen=True, slots=True)
class BadNode:
    """A member that is not allowed in a model, and the reason."""

    reason: str


@dataclass(slots=True, eq=False)
class DirectoryNode:
    """A directory: child nodes by name."""

    children: dict[str, Node] = field(default_factory=dict)


Node = FileNode | LinkNode | BadNode | DirectoryNode


@dataclass(frozen=True, slots=True)
class OverlaidFiles:
    """The files below a root by path, sorted, and ignored paths with the reason."""

    files: tuple[tuple[str, FileNode], ...]
    left_out: dict[str, str]


class Tree:
    """Merges layers, lowest first. `overlay`: whether later layers may replace and hide what is below."""

    def __init__(self, *, overlay: bool, limits: Limits) -> None:
        self._root = DirectoryNode()
        self._overlay = overlay
        self._limits = limits
        self._conflicts: dict[str, str] = {}
        self._members = 0
        self._visited = 0
        self._steps = 0

    def add(self, layer: int, members: Sequence[TarMember]) -> None:
        """Add a layer on top. Raises InvalidImage."""
        self._members += len(members)
        self._limits.check_members(self._members)
        if self._overlay:
            # Whiteouts hide only lower layers, wherever in this layer they are, so they are applied first.
            for member in members:
                if _is_whiteout(member.path):
                    self._hide(member.path)
        for number, member in enumerate(members):
            if member.path and not (self._overlay and _is_whiteout(member.path)):
                self._put(layer, number, member)

    def holds_files(self, path: str) -> bool:
        """Whether a path leads to a non-empty directory."""
        found = self._resolve(tuple(path.split("/")))
        return isinstance(found[1], DirectoryNode) and bool(found[1].children)

    def view(self, root: str = "") -> OverlaidFiles:
        """The files below a directory of the tree, with links resolved. Raises InvalidImage for unsafe members."""
        where, node = self._resolve(tuple(root.split("/")) if root else ())
        if not isinstance(node, DirectoryNode):
            raise InvalidImage(f"{root!r} in the image is not a directory")
        # Only conflicts inside the model matter: base systems have directories that are links in a lower layer.
        self._check_conflicts({root, "/".join(where)})
        left_out: dict[str, str] = {}
        self._visited = 0
        files = list(self._walk(where, node, (), (), left_out))
        return OverlaidFiles(tuple(sorted(files, key=lambda each: each[0])), left_out)

    # Building

    def _put(self, layer: int, number: int, member: TarMember) -> None:
        *parents, name = member.path.split("/")
        directory = self._make(parents)
        # Recorded, not raised: such members matter only inside the model.
        if directory is None:
            self._conflicts[member.path] = "is below a link or a file"
            return
        known = directory.children.get(name)
        # A repeated entry for a directory keeps its contents.
        if member.kind is MemberKind.DIRECTORY and isinstance(known, DirectoryNode):
            return
        if known is not None and not self._overlay:
            raise InvalidImage(f"{member.path!r} is in the artifact twice")
        directory.children[name] = self._node(layer, number, member)

    def _node(self, layer: int, number: int, member: TarMember) -> Node:
        match member.kind:
            case MemberKind.FILE:
                return FileNode(layer, number, member.size)
            case MemberKind.DIRECTORY:
                return DirectoryNode()
            case MemberKind.SYMLINK:
                return LinkNode(member.target)
            case MemberKind.SPECIAL:
                return BadNode("is a device or a named pipe")
            case MemberKind.HARDLINK:
                target = self._find(member.target.split("/"))
                # A link to itself or below itself: its target is replaced before the link is created.
                itself = f"{member.target}/".startswith(f"{member.path}/")
                if isinstance(target, FileNode | LinkNode | BadNode) and not itself:
                    return target
                return BadNode(f"is a hard link to {member.target!r}, which isn't a file before it")

    def _hide(self, path: str) -> None:
        *parents, name = path.split("/")
        directory = self._find(parents)
        if not isinstance(directory, DirectoryNode):
            return
        if name == _OPAQUE:
            directory.children.clear()
        elif not name.startswith(_AUFS):
            hidden = name.removeprefix(_WHITEOUT)
            if hidden in ("", ".", ".."):
                raise InvalidImage(f"malformed whiteout: {path!r}")
            directory.children.pop(hidden, None)

    def _make(self, parts: Sequence[str]) -> DirectoryNode | None:
        directory = self._root
        for part in parts:
            child = directory.children.setdefault(part, DirectoryNode())
            if not isinstance(child, DirectoryNode):
                return None
            directory = child
        return directory

    def _find(self, parts: Sequence[str]) -> Node | None:
        """The node at a path, without following links."""
        node: Node | None = self._root
        for part in parts:
            node = node.children.get(part) if isinstance(node, DirectoryNode) else None
        return node

    # Reading

    def _walk(
        self,
        where: tuple[str, ...],
        directory: DirectoryNode,
        prefix: tuple[str, ...],
        above: tuple[DirectoryNode, ...],
        left_out: dict[str, str],
    ) -> Iterator[tuple[str, FileNode]]:
        if len(prefix) > MAX_DEPTH:
            raise InvalidImage("the image has too many nested links")
        for name, child in directory.children.items():
            # Links to directories multiply the tree, so the paths seen are counted, not the members.
            self._visited += 1
            self._limits.check_members(self._visited)
            parts = (*prefix, name)
            path = check_path("/".join(parts))
            place, node = (*where, name), child
            if isinstance(child, LinkNode):
                found = self._resolve(place)
                # Dangling links are common in base images and no reason to refuse a model.
                if found[1] is None:
                    left_out[path] = "a link to something that isn't in the image"
                    continue
                place, node = found[0], found[1]
            if isinstance(node, BadNode):
                raise InvalidImage(f"{path!r} in the image {node.reason}")
            if isinstance(node, FileNode):
                yield path, node
            elif isinstance(node, DirectoryNode) and (node is directory or node in above):
                left_out[path] = "a link to a directory that contains it"
            elif isinstance(node, DirectoryNode):
                yield from self._walk(place, node, parts, (*above, directory), left_out)

    def _resolve(self, parts: tuple[str, ...]) -> tuple[tuple[str, ...], Node | None]:
        """Resolve a path, following links inside the tree: the final path and its node, None if there is none."""
        todo, links = list(reversed(parts)), 0
        # The trail holds the directories entered, so that ".." after a link leads to the target's parent.
        trail: list[tuple[tuple[str, ...], Node]] = [((), self._root)]
        while todo:
            part = todo.pop()
            # Counted over all links: each may lead through others, and each target has thousands of names.
            self._steps += 1
            self._limits.check_links(self._steps)
            if part in ("", "."):
                continue
            if part == "..":
                if len(trail) == 1:
                    raise InvalidImage(
                        f"a link in the image points outside of it: {'/'.join(parts)!r}"
                    )
                trail.pop()
                continue
            place, node = trail[-1]
            child = node.children.get(part) if isinstance(node, DirectoryNode) else None
            if child is None:
                return (*place, part), None
            if not isinstance(child, LinkNode):
                trail.append(((*place, part), child))
                continue
            links += 1
            # The same limit as in Linux: a loop of links leads nowhere.
            if links > _MAX_LINKS:
                return (*place, part), None
            if child.target.startswith("/"):
                if not self._overlay:
                    raise InvalidImage(
                        f"an absolute link in a model artifact: {'/'.join((*place, part))!r}"
                    )
                # An absolute link starts at the container's root, which is the image's root.
                trail = trail[:1]
            todo += reversed(child.target.split("/"))
        return trail[-1]

    def _check_conflicts(self, roots: set[str]) -> None:
        for path, reason in self._conflicts.items():
            for root in roots:
                if not root or path.startswith(f"{root}/"):
                    raise InvalidImage(f"{path!r} in the image {reason}")


def _is_whiteout(path: str) -> bool:
    return path.rpartition("/")[2].startswith(_WHITEOUT)
