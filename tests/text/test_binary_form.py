"""Tokenizers as `.pylm` files and as pickles: all comes back, damage is refused, processes share pages."""

import copy
import gzip
import json
import mmap
import multiprocessing
import os
import pickle
import random
import re
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import tokenizers
import xxhash
from binary_form import assert_same, through_binary
from oracles import sentencepiece as oracle
from typer.testing import CliRunner

from pylm.cli import app
from pylm.errors import InputError
from pylm.text import AddedToken, Tokenizer

REAL = (
    *("openai/r50k_base.tiktoken", "openai/cl100k_base.tiktoken", "openai/o200k_base.tiktoken"),
    *("llama3/tokenizer.model", "llama2/tokenizer.model", "qwen3/tokenizer.json"),
)
HOSTILE = [
    *("", " ", "a", "é", "\0", "日本語 テキスト", "a\u0301 ﬁ", "  \n\n\t x", "\U0001f600" * 9, "<s>"),
    "x" * 3000,
]
GOLDEN_IDS = {
    "bytes": [257, 274, 221, 0, 280, 12, 277, 221, 275, 221, 18, 16, 18, 22],
    "characters": [
        *(268, 258, 1, 276, 107, 102, 267, 46, 258, 272, 274, 258, 197, 171, 118, 197, 171, 258),
        *(52, 50, 52, 56),
    ],
}


def _texts(shared_data: Path) -> list[str]:
    texts = [(shared_data / name).read_text(encoding="utf-8") for name in ("text/wiki_demo.txt",)]
    return [*HOSTILE, *texts[0][:300_000].split("\n"), texts[0][:200_000]]


def _check(again: Tokenizer, original: Tokenizer, texts: list[str]) -> None:
    """Ids, bytes and places of every way there is."""
    expected = original.encode_batch(texts)
    for num_threads in (1, 2):
        batch = again.encode_batch(texts, num_threads=num_threads)
        assert (batch.ids == expected.ids).all()
        assert (batch.offsets == expected.offsets).all()
    assert again.decode_batch(expected) == original.decode_batch(expected)
    for text in texts[:300]:
        ids = original.encode(text, allowed_special="all", add_special_tokens=True)
        assert again.encode(text, allowed_special="all", add_special_tokens=True) == ids
        assert again.decode_bytes(ids) == original.decode_bytes(ids)
        assert again.decode(ids, skip_special_tokens=True) == original.decode(ids, skip_special_tokens=True)
        mine, theirs = (one.encode_with_offsets(text, allowed_special="all") for one in (again, original))
        assert mine.ids.tolist() == theirs.ids.tolist()
        assert mine.bytes.tolist() == theirs.bytes.tolist()
        assert mine.chars.tolist() == theirs.chars.tolist()
        assert again.normalize(text) == original.normalize(text)
    assert again.encode_ordinary(b"\xff\x00 a\xc3") == original.encode_ordinary(b"\xff\x00 a\xc3")


@pytest.fixture(scope="module")
def small() -> Tokenizer:
    corpus = ["low lower lowest newest wider", "été naïve"] * 50
    return Tokenizer.train(corpus, vocab_size=300, pattern="cl100k", special_tokens=["<|end|>"])


@pytest.fixture(scope="module")
def content(small: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("small") / "small.pylm"
    small.save(path)
    return path.read_bytes()


@pytest.mark.parametrize("name", REAL)
def test_real_vocabularies_come_back(name: str, shared_data: Path, tmp_path: Path) -> None:
    original = Tokenizer.load(shared_data / "tokenizers" / name)
    texts = _texts(shared_data)
    _check(through_binary(original, tmp_path), original, texts)
    _check(pickle.loads(pickle.dumps(original)), original, texts[:500])


def test_all_parts_come_back(small: Tokenizer, tmp_path: Path) -> None:
    size = len(small._vocabulary)
    small.save(tmp_path / "plain.json")
    document = json.loads((tmp_path / "plain.json").read_text(encoding="utf-8"))
    words = ["<think>", " lower", "été", "<|end|>", "<bos>"]
    flags: list[dict[str, bool]] = [{"single_word": True}, {"lstrip": True}, {"normalized": True}, {}, {}]
    document["added_tokens"] = [
        {"id": size + i, "content": word, "special": word == "<bos>", **flag}
        for i, (word, flag) in enumerate(zip(words, flags, strict=True))
    ]
    document["added_tokens"] = [t for t in document["added_tokens"] if t["content"] != "<|end|>"]
    document["normalizer"] = {
        "type": "Sequence",
        "normalizers": [{"type": "NFKC"}, {"type": "Replace", "pattern": {"String": "w"}, "content": "vv"}],
    }
    document["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<bos>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<bos>": {"id": "<bos>", "ids": [size + 4], "tokens": ["<bos>"]}},
    }
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "tokenizer.json").write_text(json.dumps(document), encoding="utf-8")
    config = {"bos_token": "<bos>", "pad_token": "<think>", "chat_template": "{{ messages }} é"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    original = Tokenizer.load(folder)
    assert original.bos_id == size + 4
    assert len(original.added_tokens) == 4
    texts = [*HOSTILE, "a <think> b", "a<think>b", "so lower  lower", "eﬁté été", "new <bos> widest"]
    for again in (through_binary(original, tmp_path), pickle.loads(pickle.dumps(original))):
        assert_same(again, original, tmp_path)
        _check(again, original, texts)
        assert again.encode("low", add_special_tokens=True)[0] == size + 4
        for one in (original, again):
            (tmp_path / "out").mkdir(exist_ok=True)
            one.save(tmp_path / "out")
            saved = (tmp_path / "out/tokenizer_config.json").read_text(encoding="utf-8")
            assert json.loads(saved)["chat_template"] == config["chat_template"]


def test_patterns_without_a_machine_come_back(tmp_path: Path) -> None:
    for pattern in (r"\w+|\W+", r"\p{L}{1,3}|\P{L}"):
        original = Tokenizer.train(["low lower lowest"] * 9, vocab_size=270, pattern=pattern)
        _check(through_binary(original, tmp_path), original, [*HOSTILE, "lower, lowest"])


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("charsmap", ["", "nmt_nfkc"])
def test_sentencepiece_kinds_come_back(ties: bool, charsmap: str, tmp_path: Path) -> None:
    pieces: list[oracle.Piece] = [("<unk>", 0.0, oracle.UNKNOWN), ("<s>", 0.0, oracle.CONTROL)]
    words = ["▁", "a", "b", "ab", "▁a", "▁ab", "aa", "ba", "bab", "abab", "▁▁", "é", "éa"]
    pieces += [(word, -(i // 3) if ties else -i, oracle.NORMAL) for i, word in enumerate(words)]
    pieces += [("xyz", -50.0, oracle.NORMAL), ("aba", -1.5, oracle.UNUSED), ("<u>", 0.0, oracle.USER_DEFINED)]
    path = tmp_path / "tokenizer.model"
    path.write_bytes(oracle.write_model(pieces, byte_fallback=False))
    original = Tokenizer.load(path)
    draw = random.Random(4)
    texts = [*HOSTILE, *("".join(draw.choices([*"ab é▁x", "<u>", "xyz"], k=9)) for _ in range(500))]
    again = through_binary(original, tmp_path)
    expected = [oracle.encode(text, pieces, byte_fallback=False) for text in texts]
    assert [again.encode_ordinary(text) for text in texts] == expected
    assert [original.encode_ordinary(text) for text in texts] == expected


def test_a_file_is_known_by_its_bytes_and_found_in_a_folder(
    small: Tokenizer, content: bytes, tmp_path: Path
) -> None:
    (tmp_path / "any name.json").write_bytes(content)
    assert Tokenizer.load(tmp_path / "any name.json").fingerprint == small.fingerprint
    (tmp_path / "tokenizer.pylm").write_bytes(content)
    assert Tokenizer.load(tmp_path).fingerprint == small.fingerprint
    other = Tokenizer.train(["another"], vocab_size=257, pattern="gpt2")
    other.save(tmp_path / "tokenizer.json")  # which comes first
    assert Tokenizer.load(tmp_path).fingerprint == other.fingerprint


def test_names_that_are_no_utf8(small: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"\xff\xe9.pylm")
    small.save(path)
    assert Tokenizer.load(path).fingerprint == small.fingerprint


def test_the_pattern_can_be_replaced(small: Tokenizer, content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.pylm").write_bytes(content)
    small.save(tmp_path / "x.json")
    ours, plain = (Tokenizer.load(tmp_path / name, pattern="gpt2") for name in ("x.pylm", "x.json"))
    assert ours.pattern == "gpt2"
    _check(ours, plain, [*HOSTILE, "it's lower 12345"])


def _refused(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        Tokenizer.load(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_damage_is_refused_with_the_reason(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.pylm"

    def message(changed: bytes) -> str:
        path.write_bytes(changed)
        return _refused(path)

    def at(place: int, value: bytes) -> bytes:
        return content[:place] + value + content[place + len(value) :]

    assert "does not begin as" in message(b"")
    assert "does not begin as" in message(b'{"version": "1.0"}')
    assert "does not begin as" in message(content.replace(b"\r\n", b"\n"))
    assert "cut off within the header" in message(content[:40])
    assert "version 2 of the form, and this pylm reads version 1" in message(at(8, struct.pack("<I", 2)))
    assert "another order of bytes" in message(at(12, struct.pack(">I", 0x01020304)))
    assert "header is damaged" in message(at(48, b"\1"))
    assert "list of sections is damaged" in message(at(64, b"\x77"))
    size = len(content)
    assert f"expected {size} bytes, got {size - 1}" in message(content[:-1])
    assert f"expected {size} bytes, got {size + 1}" in message(content + b"\0")
    found = re.search(r"damaged between the bytes (\d+) and (\d+)", message(at(size // 2, b"\xff\xfe\xfd")))
    assert found is not None
    assert int(found[1]) <= size // 2 < int(found[2])
    assert "save it again from" in message(content[:-1])


def test_every_changed_byte_is_found(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.pylm"
    draw = random.Random(0)
    for place in [*range(0, 1024, 7), *(draw.randrange(len(content)) for _ in range(200))]:
        changed = bytearray(content)
        changed[place] ^= 1 << draw.randrange(8)
        path.write_bytes(changed)
        _refused(path)
    for size in [*range(0, 1024, 13), *(draw.randrange(len(content)) for _ in range(60))]:
        path.write_bytes(content[:size])
        _refused(path)


def test_a_file_that_is_replaced_or_removed_stays_in_use(
    small: Tokenizer, content: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "x.pylm"
    path.write_bytes(content)
    loaded = Tokenizer.load(path)
    Tokenizer.train(["another"], vocab_size=257, pattern="gpt2").save(path)
    _check(loaded, small, HOSTILE)
    loaded.save(path)
    assert path.read_bytes() == content
    path.unlink()
    _check(loaded, small, HOSTILE)
    assert list(tmp_path.iterdir()) == []


def _forge(content: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    """Change the description, checksums being those of the new file."""
    num_sections = struct.unpack_from("<Q", content, 24)[0]
    sections = []
    for i in range(num_sections):
        section, begin, size, _ = struct.unpack_from("<4Q", content, 64 + 32 * i)
        data = content[begin : begin + size]
        if section == 1:
            document = json.loads(data)
            change(document)
            data = json.dumps(document).encode()
        sections.append((section, data))
    return _file_of(sections, content[:16])


def _file_of(sections: list[tuple[int, bytes]], kind: bytes) -> bytes:
    def padded(data: bytes) -> bytes:
        return data + bytes(-len(data) % 64)

    def checksum(data: bytes) -> int:
        return xxhash.xxh3_64_intdigest(data, seed=1)

    first = 64 + 32 * len(sections)
    first += -first % 64
    entries, body = b"", b""
    for section, data in sections:
        entries += struct.pack("<4Q", section, first + len(body), len(data), checksum(padded(data)))
        body += padded(data)
    entries = entries.ljust(first - 64, b"\0")
    head = kind + struct.pack("<3Q", first + len(body), len(sections), checksum(entries)) + bytes(16)
    return head + struct.pack("<Q", checksum(head)) + entries + body


FORGED: dict[str, Callable[[dict[str, Any]], object]] = {
    "an id that is text": lambda d: d["added_tokens"][0].__setitem__(1, "7"),
    "an id below zero": lambda d: d["added_tokens"][0].__setitem__(1, -1),
    "an id of 33 bits": lambda d: d["added_tokens"][0].__setitem__(1, 1 << 32),
    "an id of half": lambda d: d["added_tokens"][0].__setitem__(1, 0.5),
    "a text that is none": lambda d: d["added_tokens"][0].__setitem__(0, None),
    "no text": lambda d: d["added_tokens"][0].__setitem__(0, ""),
    "lone surrogates": lambda d: d["added_tokens"][0].__setitem__(0, "\ud800"),
    "a flag that is a list": lambda d: d["added_tokens"][0].__setitem__(3, []),
    "a flag too many": lambda d: d["added_tokens"][0].append(True),
    "a token twice": lambda d: d["added_tokens"].append(d["added_tokens"][0]),
    "a row that is a number": lambda d: d["added_tokens"].append(5),
    "a role that is a list": lambda d: d["config"].__setitem__("bos_token", ["<s>"]),
    "a role of no token": lambda d: d["config"].__setitem__("bos_token", "<none>"),
    "another role": lambda d: d["config"].__setitem__("new", None),
    "a template of text": lambda d: d["template"].__setitem__("before", ["1"]),
    "a template of no tokens": lambda d: d["template"].__setitem__("before", [5]),
    "a post-processor that is text": lambda d: d["template"].__setitem__("spec", "x"),
    "a switch that is a number": lambda d: d.__setitem__("ignore_merges", 2),
    "an expression that is none": lambda d: d["pattern"].__setitem__("expressions", [None]),
    "missing bytes that are text": lambda d: d.__setitem__("missing", {"unknown": "x", "fuse": True}),
    "a lone surrogate elsewhere": lambda d: d["config"].__setitem__("chat_template", "\udfff"),
    "another model": lambda d: d.__setitem__("model", "words"),
}


@pytest.mark.parametrize("name", FORGED)
def test_forged_descriptions_are_refused_by_name(name: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.pylm"
    assert _forge(content, lambda _: None) == content
    forged = _forge(content, FORGED[name])
    path.write_bytes(forged)
    _refused(path)
    with pytest.raises(InputError, match="the bytes: "):
        Tokenizer._of_binary(forged)


def test_forged_tables_are_refused_by_name_or_work(content: bytes, tmp_path: Path) -> None:
    num_sections = struct.unpack_from("<Q", content, 24)[0]
    entries = [struct.unpack_from("<4Q", content, 64 + 32 * i) for i in range(num_sections)]
    sections = [(section, content[begin : begin + size]) for section, begin, size, _ in entries]
    path = tmp_path / "x.pylm"
    draw = random.Random(3)
    refused = 0
    for i, (section, data) in enumerate(sections):
        changed = bytearray(data)
        for _ in range(min(3, len(data))):
            changed[draw.randrange(len(data))] = draw.randrange(256)
        for forged in (b"", data[:-1], data[: len(data) // 2], data + b"\0", data * 2, bytes(changed)):
            path.write_bytes(_file_of([*sections[:i], (section, forged), *sections[i + 1 :]], content[:16]))
            try:
                again = Tokenizer.load(path)
            except InputError:
                assert str(path) in _refused(path)
                refused += 1
                continue
            for text in HOSTILE:
                again.encode(text)
    assert refused > 2 * num_sections


def test_what_to_write_is_told_by_the_name(small: Tokenizer, tmp_path: Path) -> None:
    for name in ("x.txt", "x.model", "x.json.gz", "x.JSON"):
        with pytest.raises(InputError, match=r"expected a name that ends in \.json, \.pylm or \.tiktoken"):
            small.save(tmp_path / name)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match="what to write is not clear"):
        small.save(tmp_path / "file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    (tmp_path / "old.v2").mkdir()
    for folder in (tmp_path / "old.v2", tmp_path / "deep" / "new"):
        small.save(folder)
        assert {path.name for path in folder.iterdir()} == {"tokenizer.json", "tokenizer_config.json"}
        assert Tokenizer.load(folder).fingerprint == small.fingerprint
        assert len(tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")).encode("lower").ids) > 0


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_pickles(small: Tokenizer, protocol: int) -> None:
    again = pickle.loads(pickle.dumps(small, protocol))
    assert again.fingerprint == small.fingerprint
    _check(again, small, HOSTILE)
    assert copy.deepcopy(small).encode("lower") == small.encode("lower")


def test_pickled_buffers_are_not_copied(small: Tokenizer, content: bytes) -> None:
    buffers: list[pickle.PickleBuffer] = []
    data = pickle.dumps(small, 5, buffer_callback=buffers.append)
    assert len(data) < 300
    assert [bytes(buffer) for buffer in buffers] == [content]
    for shift in range(9):  # any address will do
        memory = bytearray(shift) + content
        again = pickle.loads(data, buffers=[memoryview(memory)[shift:].toreadonly()])
        _check(again, small, HOSTILE)
    damaged = bytearray(content)
    damaged[len(content) // 2] ^= 1
    with pytest.raises(InputError, match="damaged between the bytes"):
        pickle.loads(data, buffers=[damaged])


def test_memory_that_may_change_is_copied(small: Tokenizer, content: bytes) -> None:
    """A view that is read-only here says nothing about who else writes to the memory."""
    data = pickle.dumps(small, 5, buffer_callback=lambda _: None)
    memory = bytearray(content)
    array = np.frombuffer(bytearray(content), np.uint8)
    read_only = array.view()
    read_only.flags.writeable = False
    anonymous = mmap.mmap(-1, len(content))
    anonymous[:] = content
    views = [
        *(memory, memoryview(memory).toreadonly(), read_only, memoryview(read_only)),
        *(memoryview(anonymous).toreadonly(), pa.py_buffer(memory), pickle.PickleBuffer(memory)),
    ]
    loaded = [pickle.loads(data, buffers=[view]) for view in views]
    memory[:] = anonymous[:] = bytes(len(content))
    array[:] = 0
    for again in loaded:
        _check(again, small, HOSTILE)
    for constant in (content, memoryview(content)):  # nothing is copied, so they are held
        before = sys.getrefcount(constant)
        again = Tokenizer._of_binary(constant)
        assert sys.getrefcount(constant) > before
        del again


def _encode_there(tokenizer: Tokenizer, texts: list[str], results: Any) -> None:
    results.put([tokenizer.encode(text) for text in texts])


@pytest.mark.parametrize("kind", ["bytes", "characters"])
def test_files_of_earlier_builds_are_read(kind: str, tmp_path: Path) -> None:
    # Where this fails, tables or their hashes have changed: give the form another version, and make the files
    # anew. The ids are those of the rank file and of the model that they were made of.
    content = gzip.decompress((Path(__file__).parent / f"version_1_{kind}.pylm.gz").read_bytes())
    path = tmp_path / "x.pylm"
    path.write_bytes(content)
    tokenizer = Tokenizer.load(path)
    text = "lower <end> wider, newest été 2026"
    assert tokenizer.encode(text, allowed_special="all") == GOLDEN_IDS[kind]
    assert tokenizer.decode(GOLDEN_IDS[kind]) == text
    tokenizer.save(path)
    assert path.read_bytes() == content


def test_worker_processes_get_it(small: Tokenizer) -> None:
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    worker = context.Process(target=_encode_there, args=(small, HOSTILE, results))
    worker.start()
    assert results.get(timeout=120) == [small.encode(text) for text in HOSTILE]
    worker.join(60)


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="reads Linux's account of memory")
def test_pages_are_those_of_the_file(shared_data: Path, tmp_path: Path) -> None:
    path = tmp_path / "cl100k.pylm"
    Tokenizer.load(shared_data / "tokenizers/openai/cl100k_base.tiktoken").save(path)
    loaded = Tokenizer.load(path)
    loaded.encode_batch(_texts(shared_data))
    entry = re.search(rf"^[0-9a-f]+-\S+ (\S+) .*{re.escape(str(path))}\n((?:\w+: .*\n)+)", _smaps(), re.M)
    assert entry is not None
    assert entry[1].startswith("r--p")
    sizes = dict(re.findall(r"(\w+): +(\d+) kB", entry[2]))
    assert int(sizes["Rss"]) * 1024 >= path.stat().st_size // 2
    assert sizes["Private_Dirty"] == sizes["Anonymous"] == "0"


def _smaps() -> str:
    return Path("/proc/self/smaps").read_text(encoding="utf-8")


def test_added_tokens_beyond_the_vocabulary(small: Tokenizer, tmp_path: Path) -> None:
    added = [AddedToken("<far>", 5000), AddedToken("low", 4000, special=False)]
    original = Tokenizer(small._vocabulary, pattern="cl100k", added_tokens=added)
    again = through_binary(original, tmp_path)
    assert again.vocab_size == 5001
    _check(again, original, [*HOSTILE, "a <far> low lower"])


def test_the_command_converts(small: Tokenizer, content: bytes, tmp_path: Path) -> None:
    def convert(*arguments: object) -> str:
        done = CliRunner().invoke(app, ["tokenizer", "convert", *map(str, arguments)], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.output

    run = tmp_path / "run" / "tokenizer"
    run.mkdir(parents=True)
    small.save(run / "tokenizer.json")
    target = tmp_path / "new" / "x.pylm"
    assert convert(tmp_path / "run", target) == f"{target}: {small.vocab_size} ids\n"
    assert Tokenizer.load(target).fingerprint == small.fingerprint
    convert(target, tmp_path / "y.json")
    assert (tmp_path / "y.json").read_bytes() == (run / "tokenizer.json").read_bytes()
    convert(target, tmp_path)
    assert (tmp_path / "tokenizer_config.json").is_file()
    convert(target, tmp_path / "z.tiktoken")
    convert(tmp_path / "z.tiktoken", tmp_path / "z.pylm", "--pattern", "cl100k")
    again = Tokenizer.load(tmp_path / "z.pylm")
    assert again.encode("lower newest") == small.encode("lower newest")
    convert(target, tmp_path / "made")
    assert Tokenizer.load(tmp_path / "made").fingerprint == small.fingerprint
    for source, out, reason in (
        (target, tmp_path / "x.pyml", "what to write is not clear"),
        (tmp_path / "absent", tmp_path / "x.pylm", "no tokenizer at"),
        (tmp_path / "z.tiktoken", tmp_path / "x.pylm", "give pattern="),
    ):
        with pytest.raises(InputError, match=reason):
            convert(source, out)
    assert not (tmp_path / "x.pylm").exists()
    assert "tokenizer convert" in CliRunner().invoke(app, ["--help"]).output
