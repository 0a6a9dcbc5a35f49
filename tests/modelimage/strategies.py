"""What the format is made of, drawn by Hypothesis."""

from __future__ import annotations

from hypothesis import strategies as st

from modelimage.descriptor import Descriptor, Platform
from modelimage.digest import Digest
from modelimage.errors import InvalidImage
from modelimage.path_rules import check_model_path, parents
from modelimage.recipe import LayerFile, layer_recipe
from modelimage.record import CHUNK_SIZE, ModelFacts, Record, RecordFile, RecordLayer, Role

hexes = st.binary(min_size=32, max_size=32).map(bytes.hex)
digests = hexes.map(Digest)
# Text without lone surrogates, which no JSON in UTF-8 can carry.
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
counts = st.integers(0, (1 << 62) - 1)
sizes = st.one_of(
    st.integers(0, 2000), st.integers(0, 1 << 45), st.sampled_from([8 << 30, (8 << 30) - 1])
)


def _is_model_path(path: str) -> bool:
    try:
        check_model_path(path)
    except InvalidImage:
        return False
    return True


_names = st.text(
    st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="/\\"),
    min_size=1,
    max_size=60,
)
paths = st.lists(_names, min_size=1, max_size=4).map("/".join).filter(_is_model_path)


def _no_file_is_a_directory(found: list[str]) -> bool:
    return not {parent for path in found for parent in parents(path)} & set(found)


path_lists = st.lists(paths, unique=True, max_size=8).filter(_no_file_is_a_directory)
layer_files = path_lists.flatmap(
    lambda found: st.tuples(
        *(st.builds(LayerFile, st.just(path), sizes, digests) for path in found)
    )
)
descriptors = st.builds(
    Descriptor,
    # Printable ASCII: a header's value.
    media_type=st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=50),
    digest=digests,
    size=counts,
    annotations=st.dictionaries(texts, texts, max_size=3),
    platform=st.none() | st.builds(Platform, texts, texts),
    artifact_type=st.none() | st.text("abc/+", min_size=1),
)
json_documents = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 60), 1 << 60) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
json_objects = st.dictionaries(texts, json_documents, max_size=4)


@st.composite
def records(draw: st.DrawFn) -> Record:
    """Well-formed records: every file in a listed layer, layers of the right sizes."""
    found = sorted(draw(path_lists))
    layers = draw(st.lists(digests, unique=True, min_size=1 if found else 0, max_size=3))
    files = []
    for path in found:
        size = draw(st.one_of(st.integers(0, 2000), st.integers(0, 5 * CHUNK_SIZE)))
        chunks = draw(
            st.lists(hexes, min_size=-(-size // CHUNK_SIZE), max_size=-(-size // CHUNK_SIZE))
        )
        role = draw(st.sampled_from(Role))
        files.append(
            RecordFile(
                path, size, draw(digests), role, draw(st.sampled_from(layers)), tuple(chunks)
            )
        )
    listed = []
    for layer in layers:
        held = [LayerFile(f.path, f.size, f.digest) for f in files if f.layer == layer]
        listed.append(RecordLayer(layer, layer_recipe(held).size, draw(st.sampled_from(Role))))
    return Record(
        variant=draw(texts),
        source=draw(texts),
        revision=draw(texts),
        license=draw(texts),
        facts=draw(st.builds(ModelFacts, parameters=counts, weight_bytes=counts, dtype=texts)),
        files=tuple(files),
        layers=tuple(listed),
        quantization=draw(st.none() | json_objects),
        extra=draw(json_objects),
    )
