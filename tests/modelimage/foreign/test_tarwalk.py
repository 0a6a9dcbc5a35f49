"""The tar grammar against Python's own tarfile, against archives made to confuse, and against noise."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelimage.errors import InvalidImage
from modelimage.foreign.limits import Limits
from modelimage.foreign.tarsplit import TarSplitter
from modelimage.foreign.tarwalk import MemberKind, TarMember, TarWalk
from tests.modelimage.foreign.images import Entry, directory, hardlink, symlink, tar

NAMES = st.text(alphabet="abcXYZ019._-äß☃ ", min_size=1, max_size=60).filter(
    lambda s: s not in (".", "..")
)
PATHS = st.lists(NAMES, min_size=1, max_size=5).map("/".join)
ENTRIES = st.one_of(
    st.builds(Entry, PATHS, st.binary(max_size=1500)),
    st.builds(directory, PATHS),
    st.builds(symlink, PATHS, PATHS),
    st.builds(hardlink, PATHS, PATHS),
)
FORMATS = st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
KINDS = {
    tarfile.REGTYPE: MemberKind.FILE,
    tarfile.DIRTYPE: MemberKind.DIRECTORY,
    tarfile.SYMTYPE: MemberKind.SYMLINK,
    tarfile.LNKTYPE: MemberKind.HARDLINK,
}


def walk(data: bytes) -> list[TarMember]:
    """Read an archive by the ranges that the walker asks for."""
    walker, members = TarWalk(), []
    while (wanted := walker.wanted) is not None and wanted.start < len(data):
        member = walker.feed(data[wanted.start : wanted.stop])
        if member is not None:
            members.append(member)
    walker.finish(len(data))
    return members


def split(data: bytes, size: int) -> tuple[list[TarMember], dict[int, bytes]]:
    """Read an archive as a stream in buffers of one size."""
    splitter, files = TarSplitter(Limits()), dict[int, bytearray]()
    for start in range(0, len(data), size):
        for piece in splitter.feed(memoryview(data)[start : start + size]):
            assert len(files.setdefault(piece.member, bytearray())) == piece.offset
            files[piece.member] += piece.data
    splitter.finish()
    return splitter.members, {number: bytes(found) for number, found in files.items()}


def ustar_fits(entries: list[Entry]) -> bool:
    """Whether Python writes these in ustar at all."""
    try:
        tar(entries, form=tarfile.USTAR_FORMAT)
    except ValueError:
        return False
    return True


@given(entries=st.lists(ENTRIES, max_size=8), form=FORMATS)
def test_reads_what_tarfile_reads(entries: list[Entry], form: int) -> None:
    if form == tarfile.USTAR_FORMAT and not ustar_fits(entries):
        form = tarfile.GNU_FORMAT
    data = tar(entries, form=form)
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        expected = [
            TarMember(
                member.name,
                KINDS[member.type],
                member.size,
                member.offset_data,
                member.linkname,
            )
            for member in archive.getmembers()
        ]
    assert walk(data) == expected


@given(
    entries=st.lists(ENTRIES, max_size=5),
    form=FORMATS,
    size=st.integers(min_value=1, max_value=3000),
)
def test_a_stream_gives_what_ranges_give(entries: list[Entry], form: int, size: int) -> None:
    if form == tarfile.USTAR_FORMAT and not ustar_fits(entries):
        form = tarfile.PAX_FORMAT
    data = tar(entries, form=form)
    members, files = split(data, size)
    assert members == walk(data)
    assert files == {
        number: data[member.offset : member.stop]
        for number, member in enumerate(members)
        if member.kind is MemberKind.FILE
    }


@given(data=st.binary(max_size=4096))
def test_noise_is_an_invalid_image_at_worst(data: bytes) -> None:
    readers: tuple[Callable[[bytes], object], ...] = (walk, lambda noise: split(noise, 700))
    for read in readers:
        try:
            read(data)
        except InvalidImage:
            continue


@given(
    entries=st.lists(ENTRIES, min_size=1, max_size=4),
    form=st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
    hits=st.lists(
        st.tuples(st.integers(min_value=0), st.binary(min_size=1, max_size=12)), max_size=4
    ),
    resum=st.booleans(),
)
def test_damage_is_an_invalid_image_at_worst(
    entries: list[Entry], form: int, hits: list[tuple[int, bytes]], resum: bool
) -> None:
    data = bytearray(tar(entries, form=form))
    for place, patch in hits:
        start = place % (len(data) - len(patch))
        data[start : start + len(patch)] = patch
    if resum:
        # With its checksum right, damage gets past the first gate.
        data[:512] = with_sum(bytes(data[:512]))
    try:
        members = walk(bytes(data))
    except InvalidImage:
        return
    for member in members:
        assert ".." not in member.path.split("/")
        assert not member.path.startswith("/")


def block(**fields: bytes) -> bytes:
    """A header by hand, its checksum right."""
    parts = {
        "name": b"file", "mode": b"0000644\0", "owner": b"0000000\0" * 2, "size": b"00000000000\0",
        "mtime": b"0" * 11 + b"\0", "sum": b" " * 8, "flag": b"0", "link": b"", "magic": b"ustar\x0000",
        "rest": b"", "prefix": b"",
    }  # fmt: skip
    widths = (100, 8, 16, 12, 12, 8, 1, 100, 8, 80, 167)
    merged = {**parts, **fields}
    return with_sum(
        b"".join(
            value.ljust(width, b"\0") for value, width in zip(merged.values(), widths, strict=True)
        )
    )


def with_sum(header: bytes) -> bytes:
    blank = header[:148] + b" " * 8 + header[156:]
    return header[:148] + b"%06o\0 " % sum(blank) + header[156:]


def pax(*records: bytes, flag: bytes = b"x") -> bytes:
    body = b"".join(records)
    return block(flag=flag, size=b"%011o\0" % len(body)) + body + bytes(-len(body) % 512)


END = bytes(1024)


def record(key: bytes, value: bytes) -> bytes:
    body = b" " + key + b"=" + value + b"\n"
    length = len(body) + 1
    while len(b"%d" % length) + len(body) != length:
        length += 1
    return b"%d" % length + body


CONFUSING = {
    "a lone zero block in the middle": block() + bytes(512) + block(name=b"hidden") + END,
    "a wrong checksum": b"x" + block()[1:] + END,
    "a size with letters": block(size=b"0000000zz00\0") + END,
    "a size with a second number": block(size=b"7\0" + b"0000077\0\0\0") + END,
    "a negative base-256 size": block(size=b"\xff" * 12) + END,
    "an absurd base-256 size": block(size=b"\x80\x7f" + b"\xff" * 10) + END,
    "a size beyond the archive": block(size=b"00000777777\0") + END,
    "two names for one member": block(flag=b"L", size=b"00000000002\0", name=b"././@LongLink")
    + b"a\0".ljust(512, b"\0") + pax(record(b"path", b"b")) + block() + END,
    "a global path": pax(record(b"path", b"everything"), flag=b"g") + block() + END,
    "a sparse file": pax(record(b"GNU.sparse.major", b"1")) + block() + END,
    "an old sparse file": block(flag=b"S") + END,
    "a pax record that is too long": pax(b"99 path=a\n") + block() + END,
    "a pax record without a length": pax(b"path=a\n") + block() + END,
    "a pax record without a key": pax(b"5 =a\n") + block() + END,
    "a pax record that ends in nothing": pax(b"9 path=aa") + block() + END,
    "a pax name with a zero byte": pax(record(b"path", b"a\0b")) + block() + END,
    "a pax size that is negative": pax(record(b"size", b"-1")) + block() + END,
    "a pax header of nothing": block(flag=b"x") + block() + END,
    "a huge pax header": block(flag=b"x", size=b"00100000000\0") + END,
    "a pax header before the end": pax(record(b"path", b"a")) + END,
    "an unknown type": block(flag=b"Z") + END,
    "a continued file": block(flag=b"M") + END,
    "a file with a directory's name": block(name=b"dir/") + END,
    "an empty name": block(name=b"") + END,
    "a link to nowhere": block(flag=b"2") + END,
    "a parent": block(name=b"a/../../etc/passwd") + END,
    "an absolute path": block(name=b"/etc/passwd") + END,
    "an absolute path in two fields": block(name=b"passwd", prefix=b"/etc") + END,
    "an absolute hard link": block(flag=b"1", link=b"/etc/passwd") + END,
    "a hard link to a parent": block(flag=b"1", link=b"../passwd") + END,
    "a name that is a parent": block(name=b"..") + END,
    "a pax path that is a parent": pax(record(b"path", b"x/..")) + block() + END,
    "a deep path": pax(record(b"path", b"/".join([b"d"] * 101))) + block() + END,
    "a long path": pax(record(b"path", b"d" * 4097)) + block() + END,
    "half a header": block()[:300],
    "a header without its file": block(size=b"00000000005\0"),
    "a file without its end": block(size=b"00000000005\0") + b"byte",
    "half a trailer block": block() + bytes(300),
}  # fmt: skip


@pytest.mark.parametrize("name", CONFUSING)
def test_what_two_programs_would_read_differently_is_refused(name: str) -> None:
    with pytest.raises(InvalidImage):
        walk(CONFUSING[name])
    with pytest.raises(InvalidImage):
        split(CONFUSING[name], 512)


ACCEPTED = {
    "no trailer": (block(), ["file"]),
    "no padding": (block(size=b"00000000005\0") + b"bytes", ["file"]),
    "half the padding": (block(size=b"00000000005\0") + b"bytes\0", ["file"]),
    "half a trailer": (block() + bytes(512), ["file"]),
    "junk after the trailer": (block() + END + b"junk" * 200, ["file"]),
    "a v7 directory": (block(name=b"dir/", flag=b"\0", magic=b""), ["dir"]),
    "dots and slashes": (block(name=b"./a//b/./c") + END, ["a/b/c"]),
    "the root": (block(name=b"./", flag=b"5") + block(name=b"/", flag=b"5") + END, ["", ""]),
    "a ustar prefix": (block(name=b"b", prefix=b"a") + END, ["a/b"]),
    "a GNU header's other fields": (block(name=b"b", magic=b"ustar  \0", prefix=b"14371") + END, ["b"]),
    "a base-256 size": (block(size=b"\x80" + bytes(10) + b"\x04") + b"data".ljust(512, b"\0"), ["file"]),
    "a comment for all": (pax(record(b"comment", b"git"), flag=b"g") + block() + END, ["file"]),
    "a name that isn't UTF-8": (block(name=b"\xff") + END, ["\udcff"]),
    "nothing": (b"", []),
}  # fmt: skip


@pytest.mark.parametrize("name", ACCEPTED)
def test_what_is_odd_but_plain_is_read(name: str) -> None:
    data, expected = ACCEPTED[name]
    assert [member.path for member in walk(data)] == expected
    assert [member.path for member in split(data, 100)[0]] == expected


def test_a_pax_size_outranks_the_header() -> None:
    data = (
        pax(record(b"size", b"3")) + block(size=b"00000000000\0") + b"abc".ljust(512, b"\0") + END
    )
    assert walk(data) == [TarMember("file", MemberKind.FILE, 3, 1536)]


def test_too_many_members_are_refused() -> None:
    splitter = TarSplitter(Limits(members=2))
    with pytest.raises(InvalidImage, match="more than 2"):
        list(splitter.feed(memoryview(tar([Entry(name) for name in "abc"]))))


def test_a_file_beyond_the_bound_is_refused() -> None:
    splitter = TarSplitter(Limits(file_bytes=10))
    with pytest.raises(InvalidImage, match="11 bytes"):
        list(splitter.feed(memoryview(tar([Entry("a", bytes(11))]))))
