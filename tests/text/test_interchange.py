"""Files of others: rank files, tokenizer.json, model folders; read, written, damaged."""

import base64
import contextlib
import hashlib
import json
import random
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiktoken
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from pylm import _core
from pylm.errors import InputError
from pylm.text import Tokenizer, _rank_format
from pylm.text._added_tokens import AddedToken
from pylm.text._templates import Template, read_template
from pylm.text.patterns import PATTERNS


def _ranks(content: bytes) -> dict[bytes, int]:
    return {base64.b64decode(token): int(rank) for token, rank in map(bytes.split, content.splitlines())}


def _pairs_slowly(tokens: list[bytes]) -> list[tuple[int, int, int, int]]:
    """Every pair of tokens whose bytes concatenate to a token, in order of the result and of the cut."""
    ids = {token: i for i, token in enumerate(tokens) if token}
    return [
        (ids[token[:cut]], ids[token[cut:]], i, i)
        for i, token in enumerate(tokens)
        for cut in range(1, len(token))
        if token[:cut] in ids and token[cut:] in ids
    ]


def _merge_slowly(token: bytes, ranks: dict[bytes, int], limit: int) -> list[bytes]:
    """Merge the bytes of a token by all ranks below `limit`."""
    pieces = [token[i : i + 1] for i in range(len(token))]
    while True:
        found = [(ranks.get(a + b, limit), i) for i, (a, b) in enumerate(pairwise(pieces))]
        rank, place = min(found, default=(limit, 0))
        if rank >= limit:
            return pieces
        pieces[place : place + 2] = [pieces[place] + pieces[place + 1]]


@pytest.fixture(scope="module")
def small() -> Tokenizer:
    return Tokenizer.train(
        Path(__file__).read_text(encoding="utf-8").split("\n"), vocab_size=480, pattern="cl100k"
    )


@pytest.fixture(scope="module")
def gpt2(shared_data: Path) -> Tokenizer:
    return Tokenizer.load(shared_data / "tokenizers/openai/r50k_base.tiktoken")


# The hashes that tiktoken expects of the files.
PUBLISHED = {
    "r50k_base": "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930",
    "p50k_base": "94b5ca7dff4d00767bc256fdd1b27e5b17361d7b8a5f968547f9f23eb70d2069",
    "cl100k_base": "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",
    "o200k_base": "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d",
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_rank_files_need_no_arguments(shared_data: Path, tmp_path: Path, name: str) -> None:
    folder = shared_data / "tokenizers/openai"
    if name == "p50k_base":  # r50k and runs of spaces
        spaces = b"".join(base64.b64encode(b" " * n) + b" %d\n" % (50_255 + n) for n in range(2, 26))
        content = (folder / "r50k_base.tiktoken").read_bytes() + spaces
    else:
        content = (folder / f"{name}.tiktoken").read_bytes()
    assert hashlib.sha256(content).hexdigest() == PUBLISHED[name]
    known = _rank_format.find_known(content)
    assert known is not None
    assert known.name == name
    if known.pattern not in PATTERNS:
        pytest.skip(f"no pattern {known.pattern} yet")
    path = tmp_path / "any name.tiktoken"
    path.write_bytes(content)
    ours = Tokenizer.load(path)
    peer = tiktoken.Encoding(
        "peer",
        pat_str=PATTERNS[known.pattern].expression.replace(r"\z", "$"),
        mergeable_ranks=_ranks(content),
        special_tokens=dict(known.special_tokens),
    )
    text = (shared_data / "tokenizers/openai/TestPlans.txt").read_text(encoding="utf-8")[:20_000]
    text += "".join(known.special_tokens) + "    x  y"
    assert ours.encode(text, allowed_special="all") == peer.encode(text, allowed_special="all")
    assert ours.vocab_size == peer.n_vocab
    ours.save(tmp_path / "saved.tiktoken")
    assert (tmp_path / "saved.tiktoken").read_bytes() == content


def test_llama3_ranks_are_recognised_under_their_name(shared_data: Path) -> None:
    ours = Tokenizer.load(shared_data / "tokenizers/llama3/tokenizer.model")
    assert ours.vocab_size == 128_256
    assert ours.pattern == "llama3"
    names = ours.special_tokens
    assert [names[f"<|{n}|>"] for n in ("begin_of_text", "end_of_text", "start_header_id", "eot_id")] == [
        128_000, 128_001, 128_006, 128_009,
    ]  # fmt: skip
    assert names["<|reserved_special_token_4|>"] == 128_008
    assert names["<|reserved_special_token_250|>"] == 128_255


def test_own_arguments_come_before_what_is_known(shared_data: Path) -> None:
    path = shared_data / "tokenizers/openai/r50k_base.tiktoken"
    assert Tokenizer.load(path, pattern="cl100k").pattern == "cl100k"
    assert Tokenizer.load(path, special_tokens={"<x>": 50_300}).special_tokens == {"<x>": 50_300}


def test_pairs_and_merges_equal_slow_ones(small: Tokenizer) -> None:
    vocabulary = small._vocabulary
    tokens = [
        *vocabulary.tokens(),
        b"a token that is long",
        b"long",
        b"a token that is ",
        b"",
        b"token that is",
    ]
    made = _core.Vocabulary(tokens, vocabulary.merges())
    assert [tuple(row) for row in made.rank_merges().tolist()] == _pairs_slowly(tokens)
    ranked = _core.Vocabulary(tokens, made.rank_merges())
    ranks = {token: i for i, token in enumerate(tokens) if token}
    expected = []
    for i, token in enumerate(tokens):
        if len(token) > 1 and len(pieces := _merge_slowly(token, ranks, i)) == 2:
            expected.append([ranks[pieces[0]], ranks[pieces[1]], i, i])
    assert ranked.canonical_merges().tolist() == expected


def test_a_trained_tokenizer_as_a_rank_file(small: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "small.tiktoken"
    small.save(path)
    peer = tiktoken.Encoding(
        "peer",
        pat_str=PATTERNS["cl100k"].expression.replace(r"\z", "$"),
        mergeable_ranks=_ranks(path.read_bytes()),
        special_tokens={},
    )
    again = Tokenizer.load(path, pattern="cl100k")
    text = Path(__file__).read_text(encoding="utf-8") + "日本 😀"
    assert small.encode(text) == peer.encode(text) == again.encode(text)


def test_what_no_rank_file_can_say_is_refused(tmp_path: Path) -> None:
    single = [bytes([i]) for i in range(256)]
    ab, bc, abc = 256, 257, 258

    def save(tokens: list[bytes], merges: list[list[int]], **options: Any) -> None:
        rows = np.array(merges, np.uint32).reshape(-1, 4)
        Tokenizer(_core.Vocabulary(single + tokens, rows), pattern="gpt2", **options).save(
            tmp_path / "x.tiktoken"
        )

    a, b, c = b"abc"
    save([b"ab"], [[a, b, ab, 0]])
    with pytest.raises(InputError, match="order of their ids"):
        save([b"ab", b"bc"], [[b, c, bc, 0], [a, b, ab, 1]])
    with pytest.raises(InputError, match="would merge other pairs"):  # abc of a and bc, where ab comes first
        save([b"ab", b"bc", b"abc"], [[a, b, ab, 0], [b, c, bc, 1], [a, bc, abc, 2]])
    with pytest.raises(InputError, match=r"token 256 \(b'xyz'\) is not made by any merge"):
        save([b"xyz"], [])
    save([b"xyz"], [], ignore_merges=True)
    from pylm.text._normalizers import Normalizer

    with pytest.raises(InputError, match="cannot hold a normalizer"):
        save([], [], normalizer=Normalizer({"type": "NFC"}))


TEMPLATE = {
    "type": "TemplateProcessing",
    "single": [
        {"SpecialToken": {"id": "<s>", "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
        {"SpecialToken": {"id": "</s>", "type_id": 0}},
    ],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
    "special_tokens": {
        "<s>": {"id": "<s>", "ids": [480], "tokens": ["<s>"]},
        "</s>": {"id": "</s>", "ids": [481], "tokens": ["</s>"]},
    },
}
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}


@pytest.mark.parametrize(
    "spec",
    [
        TEMPLATE,
        {"type": "Sequence", "processors": [BYTE_LEVEL, TEMPLATE]},
        {
            "type": "RobertaProcessing",
            "sep": ["</s>", 481],
            "cls": ["<s>", 480],
            "trim_offsets": True,
            "add_prefix_space": False,
        },
        {"type": "BertProcessing", "sep": ["</s>", 481], "cls": ["<s>", 480]},
        BYTE_LEVEL,
        None,
    ],
)
def test_post_processors_equal_hugging_face(small: Tokenizer, spec: Any, tmp_path: Path) -> None:
    added = [AddedToken("<s>", 480), AddedToken("</s>", 481)]
    path = tmp_path / "tokenizer.json"
    Tokenizer(small._vocabulary, pattern="cl100k", added_tokens=added, template=read_template(spec)).save(
        path
    )
    ours, peer = Tokenizer.load(path), tokenizers.Tokenizer.from_file(str(path))
    for text in ("", "some text"):
        assert ours.encode(text, add_special_tokens=True) == peer.encode(text).ids
        assert ours.encode(text) == peer.encode(text, add_special_tokens=False).ids


def test_own_templates_are_written(small: Tokenizer, tmp_path: Path) -> None:
    added = [AddedToken("<s>", 480), AddedToken("</s>", 481)]
    template = Template(before=(480,), after=(481, 481))
    path = tmp_path / "tokenizer.json"
    Tokenizer(small._vocabulary, pattern="cl100k", added_tokens=added, template=template).save(path)
    peer = tokenizers.Tokenizer.from_file(str(path))
    assert peer.encode("a").ids == Tokenizer.load(path).encode("a", add_special_tokens=True)
    assert peer.encode("a").ids[-2:] == [481, 481]


@pytest.mark.parametrize(
    "spec",
    [
        {"type": "Magic"},
        {"type": "TemplateProcessing", "single": [], "special_tokens": {}},
        {**TEMPLATE, "special_tokens": {}},
        {**TEMPLATE, "single": [{"Sequence": {"id": "B", "type_id": 0}}]},
        "text",
    ],
)
def test_other_post_processors_are_named(spec: object) -> None:
    with pytest.raises(InputError, match="post-processor"):
        read_template(spec)


def _folder(tokenizer: Tokenizer, folder: Path, **config: object) -> Path:
    added = [AddedToken("<s>", 480), AddedToken("</s>", 481), AddedToken("<w>", 482, special=False)]
    Tokenizer(tokenizer._vocabulary, pattern="cl100k", added_tokens=added).save(folder)
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def test_a_model_folder_names_roles_and_template(small: Tokenizer, tmp_path: Path) -> None:
    folder = _folder(
        small,
        tmp_path,
        bos_token="<s>",
        eos_token={"content": "</s>", "lstrip": False},
        chat_template="{{ x }}",
    )
    (folder / "special_tokens_map.json").write_text('{"pad_token": "</s>", "bos_token": "</s>"}')
    ours = Tokenizer.load(folder)
    assert (ours.bos_id, ours.eos_id, ours.pad_id, ours.unk_id) == (480, 481, 481, None)
    assert ours.chat_template == "{{ x }}"
    again = tmp_path / "again"
    again.mkdir()
    ours.save(again)
    loaded = Tokenizer.load(again)
    assert loaded.fingerprint == ours.fingerprint
    assert (loaded.bos_id, loaded.eos_id, loaded.pad_id) == (480, 481, 481)
    assert loaded.chat_template == "{{ x }}"
    (folder / "chat_template.jinja").write_text("{{ y }}")
    assert Tokenizer.load(folder).chat_template == "{{ y }}"
    plain = Tokenizer.load(folder / "tokenizer.json")
    assert (plain.bos_id, plain.chat_template) == (None, None)


def test_roles_are_given_and_replaced(small: Tokenizer, tmp_path: Path) -> None:
    first = Tokenizer.load(_folder(small, tmp_path, unk_token="<s>", chat_template="{{ x }}"))
    text = "some words"
    ids = first.encode(text)
    ours = first.with_roles(bos_token="<s>", eos_token="</s>", add_bos=True)
    assert (ours.bos_id, ours.eos_id, ours.pad_id, ours.unk_id) == (480, 481, None, None)
    assert ours.chat_template is None
    assert ours.fingerprint == first.fingerprint
    assert ours.encode(text) == ids
    assert ours.encode(text, add_special_tokens=True) == [480, *ids]
    ours.save(tmp_path / "roles")
    theirs = pytest.importorskip("tokenizers").Tokenizer.from_file(str(tmp_path / "roles" / "tokenizer.json"))
    assert theirs.encode(text).ids == [480, *ids]
    again = Tokenizer.load(tmp_path / "roles").with_roles(chat_template="{{ y }}")
    assert (again.bos_id, again.chat_template) == (None, "{{ y }}")
    assert again.encode(text, add_special_tokens=True) == [480, *ids]  # which is no role
    assert (first.unk_id, first.bos_id) == (480, None)
    with pytest.raises(InputError, match="with_roles: pad_token is '<nobody>', which is no added token"):
        ours.with_roles(pad_token="<nobody>", add_bos=True)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"bos_token": "<nobody>"}, "bos_token is '<nobody>', which is no added token"),
        ({"eos_token": 3}, "eos_token must be a text"),
        ({"chat_template": 3}, "chat_template must be"),
    ],
)
def test_damaged_configs_are_named(
    small: Tokenizer, tmp_path: Path, config: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        Tokenizer.load(_folder(small, tmp_path, **config))
    (tmp_path / "tokenizer_config.json").write_text("[1")
    with pytest.raises(InputError, match=r"tokenizer_config\.json: not JSON"):
        Tokenizer.load(tmp_path)


def test_transformers_give_the_same_ids(small: Tokenizer, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    template = "{% for m in messages %}<s>{{ m['content'] }}</s>{% endfor %}"
    config = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": template}
    ours = Tokenizer.load(_folder(small, tmp_path, **config))
    ours.save(tmp_path)
    text = "<s> a text <w>, 日本</s>"
    expected = ours.encode(text, allowed_special="all")
    for peer in (ours.to_transformers(), transformers.AutoTokenizer.from_pretrained(str(tmp_path))):
        assert peer(text, add_special_tokens=False)["input_ids"] == expected
        assert (peer.bos_token_id, peer.eos_token_id, peer.pad_token_id) == (480, 481, None)
        assert peer.chat_template == ours.chat_template
        rendered = peer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
        assert rendered == "<s>hi</s>"
        assert peer.decode(expected) == ours.decode(expected)


def test_without_transformers_the_remedy_is_named(small: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(InputError, match=r"pip install 'pylm-llm\[hf\]'"):
        small.to_transformers()


def _document(tokenizer: Tokenizer) -> dict[str, Any]:
    return dict(json.loads(tokenizer._to_json()))


DAMAGES: list[tuple[Callable[[dict[str, Any]], object], str]] = [
    (lambda d: d["model"]["vocab"].update(x1=3), r"have the same id 3"),
    (lambda d: d["model"]["vocab"].update(x1=-1), "whole number, not negative"),
    (lambda d: d["model"]["vocab"].update(x1=1.5), "whole number"),
    (lambda d: d["model"]["vocab"].update(x1="5"), "whole number"),
    (lambda d: d["model"]["vocab"].update(x1=1 << 31), "'x1' has the id 2147483648, too large"),
    (lambda d: d["model"]["vocab"].update(x1=1 << 33), "below 2\\^32"),
    (lambda d: d["model"]["merges"].append("one two three"), "two tokens with a space"),
    (lambda d: d["model"]["merges"].append(["a"]), "a merge of two tokens"),
    (lambda d: d["model"]["merges"].append(["a", "nobody"]), r"merge \d+ \('a', 'nobody'\) does not join"),
    (lambda d: d["model"]["merges"].append(3), "expected '\"'"),
    (lambda d: d["model"].update(vocab=[]), "BPE model with vocab"),
    (lambda d: d["model"].update(merges=None), "BPE model with vocab"),
    (lambda d: d["model"].update(ignore_merges="yes"), "unsupported ignore_merges"),
    (lambda d: d["model"].update(dropout=0.1), "unsupported model"),
    (lambda d: d.update(model=[]), "BPE model with vocab"),
    (lambda d: d.update(added_tokens={}), "unsupported added_tokens"),
    (lambda d: d["added_tokens"].append({"content": "x"}), "unsupported added token"),
    (lambda d: d["added_tokens"].append({"content": "x", "id": True}), "unsupported added token"),
    (lambda d: d["added_tokens"].append({"content": "x", "id": -4}), "unsupported added token"),
    (lambda d: d["added_tokens"].append({"content": "x", "id": 999, "lstrip": 1}), "unsupported added token"),
    (lambda d: d["added_tokens"].append({"content": "a", "id": 999}), "'a' has the id 999, but"),
    (
        lambda d: d["added_tokens"].append({"content": "\ud800", "id": 999}),
        "not a tokenizer.json .*surrogates",
    ),
    (lambda d: d["model"].update(unk_token="\ud800"), "not a tokenizer.json .*surrogates"),
    (lambda d: d["added_tokens"].append({"content": "zz", "id": 65}), "which is b'.' in the vocabulary"),
    (lambda d: d.update(pre_tokenizer=None), "unsupported pre-tokenizer"),
    (lambda d: d.update(post_processor={"type": "Magic"}), "unsupported post-processor"),
]


@pytest.mark.parametrize(("change", "message"), DAMAGES)
def test_damaged_entries_are_named(
    small: Tokenizer, tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    document = _document(small)
    change(document)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(InputError, match=message):
        Tokenizer.load(path)


def test_json_is_read_strictly(small: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    text = small._to_json()
    a_twice = text.replace('"vocab": {', '"vocab": {"a": 600, ')
    for content, message in (
        (b"", "line 1, column 1: expected '{', got the end"),
        (b"\xff", "expected '{'"),
        (text.encode()[:-3], "got the end of the file"),
        (text.encode() + b"x", "nothing after the document"),
        (a_twice.encode(), "'a' is given twice"),
        (text.replace('"vocab": {', '"vocab": {"\\ud800": 600, ').encode(), "surrogate"),
        (text.replace('"vocab": {', '"vocab": {"\\u12": 600, ').encode(), "four hexadecimal digits"),
        (text.replace('"vocab": {', '"vocab": {"\\x": 600, ').encode(), "an escape"),
        (text.replace('"vocab": {', '"vocab": {"é": 600, ').encode("latin-1", "replace"), "UTF-8"),
        (text.replace('"version": "1.0"', '"version": nonsense').encode(), "not a tokenizer.json"),
        (b'{"model": ' + b"[" * 100_000, "nested"),
    ):
        path.write_bytes(content)
        with pytest.raises(InputError, match=message):
            Tokenizer.load(path)
    # Any layout and any spelling of characters is the same document.
    path.write_text(json.dumps(json.loads(text), indent=3, ensure_ascii=True), encoding="utf-8")
    assert Tokenizer.load(path).fingerprint == small.fingerprint
    document = json.loads(text)
    document["model"]["merges"] = [" ".join(pair) for pair in document["model"]["merges"]]
    document["model"] = dict(reversed(document["model"].items()))
    path.write_text(json.dumps(dict(reversed(document.items()))), encoding="utf-8")
    assert Tokenizer.load(path).fingerprint == small.fingerprint


def test_ids_may_have_gaps(small: Tokenizer, tmp_path: Path) -> None:
    document = _document(small)
    document["model"]["vocab"]["far"] = 9000
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    tokenizer = Tokenizer.load(path)
    assert tokenizer.vocab_size == 9001
    assert tokenizer.token_bytes(9000) == b"far"
    with pytest.raises(InputError, match="token id 8999"):
        tokenizer.token_bytes(8999)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"YQ== 0\nYQ== 1\n", "token 'a' has the ids 0 and 1"),
        (b"YQ== 0\nYg== 0\n", "x.tiktoken:2: rank 0 is given twice, to 'a' and 'b'"),
        (b"YQ== 0\nYg== 4000000000\n", "x.tiktoken:2: rank 4000000000 is too large"),
        (b"YQ== 0\nYg== 99999999999\n", "x.tiktoken:2: expected base64"),
        (b"YQ== 0\nYg= 1\n", "x.tiktoken:2: expected base64"),
        (b"YQ== 0\nYh== 1\n", "x.tiktoken:2: expected base64"),
        (b"YQ== 0\nYg== -1\n", "x.tiktoken:2: expected base64"),
        (b"YQ== 0\nYg== 1.0\n", "x.tiktoken:2: expected base64"),
        (b"YQ==\n", "x.tiktoken:1: expected base64"),
        (b"\xff\xfe 0\n", "x.tiktoken:1: expected base64"),
    ],
)
def test_damaged_ranks_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "x.tiktoken"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        Tokenizer.load(path, pattern="gpt2")


def _mutate(content: bytes, seed: int) -> bytes:
    rng = random.Random(seed)
    out = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(out))
        match rng.randrange(4):
            case 0:
                out[place] = rng.randrange(256)
            case 1:
                del out[place : place + rng.randint(1, 30)]
            case 2:
                out[place:place] = rng.choice(
                    [b'"', b"{", b"[", b",", b"9", b"-", b"\\", b"null", b"\x00", b"\xff"]
                )
            case _:
                del out[place:]
                break
        if not out:
            break
    return bytes(out)


@given(seed=st.integers(0, 1 << 40))
@settings(max_examples=300, deadline=None)
def test_mutated_files_load_or_are_refused(small: Tokenizer, seed: int, tmp_path_factory: Any) -> None:
    folder = tmp_path_factory.getbasetemp()
    for name, content in (
        ("mutated.json", small._to_json().encode()),
        ("mutated.tiktoken", small._vocabulary.rank_file()),
    ):
        path = folder / name
        path.write_bytes(_mutate(content, seed))
        tokenizer = None
        with contextlib.suppress(InputError):
            tokenizer = Tokenizer.load(path, pattern="cl100k")
        if tokenizer is not None:
            # A changed id may take a byte's token away: the byte is dropped then, as in `tokenizers`.
            tokens = set(tokenizer._vocabulary.tokens())
            expected = bytes(byte for byte in "a text, 日本".encode() if bytes([byte]) in tokens)
            assert tokenizer.decode_bytes(tokenizer.encode_ordinary("a text, 日本")) == expected


def test_a_folder_with_ranks_has_roles_and_template(shared_data: Path, tmp_path: Path) -> None:
    shutil.copy(shared_data / "tokenizers/llama3/tokenizer.model", tmp_path / "tokenizer.model")
    config = {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>", "chat_template": "{{ x }}"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.bos_id == tokenizer.special_tokens["<|begin_of_text|>"]
    assert tokenizer.eos_id == tokenizer.special_tokens["<|end_of_text|>"]
    assert tokenizer.chat_template == "{{ x }}"


def test_files_that_are_no_tokenizer(tmp_path: Path) -> None:
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "words").write_text("plain text")
    (tmp_path / "x.tiktoken").write_bytes(b"")
    (tmp_path / "y.tiktoken").write_bytes(b"no ranks")
    for name, message in (
        ("", r"no tokenizer at .*; vocab\.json and merges\.txt become one by the save_pretrained"),
        ("words", r"words: neither JSON nor ranks; expected a tokenizer\.json, "),
        ("x.tiktoken", "x.tiktoken: the rank file is empty"),
        ("y.tiktoken", "y.tiktoken:1: "),
    ):
        with pytest.raises(InputError, match=message):
            Tokenizer.load(tmp_path / name)


def test_arguments_that_a_file_has_no_use_for(tmp_path: Path, shared_data: Path) -> None:
    trained = Tokenizer.train(["low lower lowest"], vocab_size=260, pattern="gpt2")
    trained.save(tmp_path / "a.json")
    with pytest.raises(InputError, match="special_tokens= is for rank files"):
        Tokenizer.load(tmp_path / "a.json", special_tokens={"<end>": 260})
    models = sorted((shared_data / "tokenizers").rglob("tokenizer.model"))
    [llama2] = [path for path in models if path.parent.name == "llama2"]
    with pytest.raises(InputError, match="a model of SentencePiece has no pattern"):
        Tokenizer.load(llama2, pattern="gpt2")
