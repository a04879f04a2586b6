"""Byte-level BPE: text to token ids and back, with the ids of tiktoken and Hugging Face tokenizers."""

import json
import operator
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from pickle import PickleBuffer
from typing import TYPE_CHECKING, Any, SupportsIndex

import numpy as np
from numpy.typing import NDArray

from pylm import _core
from pylm.errors import InputError
from pylm.files import atomic_path
from pylm.text import _binary_format, _hf_format, _loading, _rank_format
from pylm.text._added_tokens import AddedToken, AddedVocabulary, AllowedSpecial, Masks
from pylm.text._byte_model import ByteModel
from pylm.text._checks import check_int, check_threads
from pylm.text._decoding import Decoding, TokenOffsets, char_offsets
from pylm.text._hf_config import ROLES, TokenizerConfig, write_config
from pylm.text._models import Parts
from pylm.text._normalizers import Normalizer
from pylm.text._templates import Template
from pylm.text._training import Ties, check_options, count_corpus, learn_merges
from pylm.text.patterns import PretokenPattern
from pylm.text.texts import Texts, to_list
from pylm.text.token_array import TokenArray, join_arrays
from pylm.text.word_counter import TextBatches, TrainingProgress, WordCounter

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer
    from transformers import PreTrainedTokenizerFast


class Tokenizer(Decoding):
    """A byte-level BPE tokenizer. Immutable; use one from as many threads as you like."""

    def __init__(
        self,
        vocabulary: _core.Vocabulary,
        *,
        pattern: str | PretokenPattern,
        added_tokens: Sequence[AddedToken] = (),
        ignore_merges: bool = False,
        normalizer: Normalizer | None = None,
        template: Template | None = None,
        config: TokenizerConfig | None = None,
    ) -> None:
        """Assemble a tokenizer; `load` and `train` are the usual ways.

        Args:
            vocabulary: bytes of each id, without special tokens, and the merges.
            pattern: the pre-tokenization: a key of `PATTERNS`, or a regular expression, which is slower.
            added_tokens: words that are cut out first; their ids may lie within or past the vocabulary.
            ignore_merges: take a piece that is a token whole before any merge.
            normalizer: what is done to a text first.
            template: what `add_special_tokens` puts around a text.
            config: roles of special tokens, and the chat template.

        Raises:
            InputError: the parts do not fit each other; names the entry.
        """
        model = ByteModel(vocabulary, pattern, ignore_merges=ignore_merges)
        self._set_up(Parts(model, added_tokens, normalizer, template or Template()), config)

    def _set_up(self, parts: Parts, config: TokenizerConfig | None) -> None:
        self._model = parts.model
        self._normalizer = parts.normalizer
        self._template = parts.template
        self._config = config or TokenizerConfig()
        self._added = AddedVocabulary(parts.added_tokens, parts.normalizer)
        try:
            self._decoder = parts.model.decoder(self._added.tokens)
        except ValueError as error:
            raise InputError(str(error)) from error
        self._lead = parts.model.lead
        self._batch_encoder = parts.model.batch_encoder(self._added)
        self._role_ids = {role: self._find_role(role) for role in ROLES}

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        pattern: str | None = None,
        special_tokens: Mapping[str, int] | None = None,
    ) -> "Tokenizer":
        """Read a tokenizer.json, ranks, a SentencePiece model, a tekken.json, a .pylm file or a model folder.

        The rank files that OpenAI and Meta publish are recognised by their bytes, whatever their name:
        r50k_base, p50k_base, cl100k_base, o200k_base, and Llama 3's tokenizer.model. A `.pylm` file is what
        `save` has written: it is mapped and stays so, and must not be written into while it is in use.

        Args:
            path: the file, or a folder with a tokenizer.json, else a tokenizer.model, tekken.json or
                tokenizer.pylm; roles of tokens and chat template are taken from the files beside it. What a
                tokenizer.model is, ranks (Llama 3) or a model of SentencePiece (Llama 2), shows in its first
                bytes.
            pattern: pre-tokenization, see `PATTERNS`: a rank file that is not known needs it, and of another
                byte-level file it takes the place of its own.
            special_tokens: of a rank file, which does not hold them.

        Raises:
            InputError: no such file, a damaged entry, a feature that cannot be reproduced exactly, or an
                argument that the file has no use for.

        Example:
            >>> Tokenizer.load("cl100k_base.tiktoken").encode("hello world")
            [15339, 1917]
        """
        return cls._of_parts(path, *_loading.load(Path(path), pattern, special_tokens))

    @classmethod
    def _of_parts(cls, name: str | Path, parts: Parts, config: TokenizerConfig) -> "Tokenizer":
        tokenizer = cls.__new__(cls)
        try:
            tokenizer._set_up(parts, config)
        except InputError as error:
            raise InputError(f"{name}: {error}") from error
        return tokenizer

    @classmethod
    def train(
        cls,
        corpus: TextBatches | WordCounter,
        *,
        vocab_size: int,
        pattern: str | PretokenPattern = "cl100k",
        special_tokens: Sequence[str] = (),
        min_frequency: int = 2,
        max_token_length: int | None = None,
        limit_alphabet: int | None = None,
        initial_alphabet: bytes = b"",
        ties: Ties = "hf",
        separator: str | bytes | None = None,
        keep_separator: bool = False,
        counts: str | Path | None = None,
        progress: TrainingProgress | None = None,
        num_threads: int = 0,
    ) -> "Tokenizer":
        """Learn a vocabulary: the merges of Hugging Face's `BpeTrainer`, ties included.

        Args:
            corpus: texts, Arrow string arrays, `pathlib.Path`s of text files (whose bytes need not be UTF-8),
                or what a `WordCounter` has counted, with its pattern. Read a part at a time: memory grows
                with the different pieces only.
            vocab_size: ids in all: special tokens, 256 bytes, merges.
            pattern: pre-tokenization: a key of `PATTERNS`, or a regular expression, which is slower.
            special_tokens: get the first ids, in this order. A merge that arrives at the text of one takes
                its id, as in Hugging Face's trainer.
            min_frequency: pairs seen less often are not merged.
            max_token_length: tokens have fewer bytes than this, or two (as in Hugging Face's trainer, whose
                bound is exclusive and is not asked about pairs of bytes).
            limit_alphabet: merges hold only this many bytes, the most frequent; the others are left out of
                words, as in Hugging Face's trainer, but keep their ids, so that any text can be encoded.
            initial_alphabet: bytes that `limit_alphabet` never leaves out.
            ties: which of equally frequent pairs is merged first: "hf" takes the smallest ids,
                "lexicographic" the greatest bytes, as the CS336 reference does.
            separator: texts in files end here; without it a file is one text.
            keep_separator: the separator belongs to the text before it.
            counts: file for the counts of a corpus of paths, written as counting goes on; where it exists,
                counting continues from it.
            progress: called now and then with "count" and bytes, then "merge" and tokens: done, in all (None
                where unknown).
            num_threads: 0 takes all cores; the result does not depend on it.

        Raises:
            InputError: a vocabulary too small for bytes and special tokens, an unknown pattern, a corpus
                without text, a file that cannot be read, an option out of range.

        Example:
            >>> Tokenizer.train(["low lower lowest"], vocab_size=260, pattern="gpt2").decode([256, 257])
            'lolow'
        """
        check_options(
            vocab_size=vocab_size,
            special_tokens=special_tokens,
            min_frequency=min_frequency,
            limit_alphabet=limit_alphabet,
            initial_alphabet=initial_alphabet,
            max_token_length=max_token_length,
            ties=ties,
            num_threads=num_threads,
        )
        counter = count_corpus(
            corpus,
            pattern=pattern,
            separator=separator,
            keep_separator=keep_separator,
            counts=counts,
            num_threads=num_threads,
            progress=progress,
        )
        tokens, merges = learn_merges(
            counter,
            vocab_size=vocab_size,
            special_tokens=special_tokens,
            min_frequency=min_frequency,
            limit_alphabet=limit_alphabet,
            initial_alphabet=initial_alphabet,
            max_token_length=max_token_length,
            ties=ties,
            num_threads=num_threads,
            progress=progress,
            release=counter is not corpus,
        )
        # A special token that merges make as well is looked for first: the vocabulary keeps its bytes.
        added = [AddedToken(text, i) for i, text in enumerate(special_tokens)]
        return cls(_core.Vocabulary(tokens, merges), pattern=counter.pretoken, added_tokens=added)

    @property
    def pattern(self) -> str:
        """How text is cut into pieces: a key of `PATTERNS`, an expression, or "sentencepiece"."""
        return self._model.pattern

    @property
    def _vocabulary(self) -> _core.Vocabulary:
        return self._model.vocabulary

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return len(self._decoder)

    @property
    def special_tokens(self) -> dict[str, int]:
        """Special tokens and their ids."""
        return dict(self._added.special)

    @property
    def added_tokens(self) -> tuple[AddedToken, ...]:
        """All added tokens with their flags: the special ones, and words that are always recognised."""
        return self._added.tokens

    @property
    def bos_id(self) -> int | None:
        """Id that begins a text, where the files of a model folder name one."""
        return self._role_ids["bos"]

    @property
    def eos_id(self) -> int | None:
        """Id that ends a text, where the files of a model folder name one."""
        return self._role_ids["eos"]

    @property
    def pad_id(self) -> int | None:
        """Id that fills up the rows of a batch, where the files of a model folder name one."""
        return self._role_ids["pad"]

    @property
    def unk_id(self) -> int | None:
        """Id for what has no token, where the files of a model folder name one; bytes leave it unused."""
        return self._role_ids["unk"]

    @property
    def chat_template(self) -> str | None:
        """Jinja source of the model folder's chat template."""
        return self._config.chat_template

    def _find_role(self, role: str) -> int | None:
        text = getattr(self._config, f"{role}_token")
        if text is None:
            return None
        if text not in self._added.contents:
            raise InputError(
                f"{role}_token is {text!r}, which is no added token of this tokenizer; expected one of "
                f"{', '.join(list(self._added.contents)[:8]) or 'none'}"
            )
        return self._added.contents[text]

    def with_roles(
        self,
        *,
        bos_token: str | None = None,
        eos_token: str | None = None,
        pad_token: str | None = None,
        unk_token: str | None = None,
        chat_template: str | None = None,
        add_bos: bool = False,
    ) -> "Tokenizer":
        """Give the same tokenizer with these roles, and no others, for `save` and `to_transformers`.

        Args:
            bos_token: begins a text.
            eos_token: ends a text, or an answer.
            pad_token: fills up a row of a batch.
            unk_token: stands for what has no token.
            chat_template: Jinja source.
            add_bos: `add_special_tokens` puts `bos_token` before a text, in place of what it puts now.

        Raises:
            InputError: a token that is no added token of this tokenizer.
        """
        config = TokenizerConfig(bos_token, eos_token, pad_token, unk_token, chat_template)
        parts = self._parts()
        if add_bos and bos_token in self._added.contents:
            parts = replace(parts, template=Template((self._added.contents[bos_token],)))
        return self._of_parts("with_roles", parts, config)

    @property
    def fingerprint(self) -> str:
        """Hash of all that decides ids: equal for tokenizers that give equal ids."""
        return self._model.fingerprint(self._added, self._normalizer)

    def encode(
        self,
        text: str,
        *,
        allowed_special: AllowedSpecial = (),
        disallowed_special: AllowedSpecial = "all",
        add_special_tokens: bool = False,
    ) -> list[int]:
        """Turn text into ids.

        Args:
            text: any string without lone surrogates.
            allowed_special: special tokens that are recognised in the text, or "all".
            disallowed_special: special tokens that the text may not hold, or "all" others; () takes them for
                ordinary text.
            add_special_tokens: put around it what the tokenizer.json's post-processor says, as a rule a
                beginning of text.

        Raises:
            InputError: the text holds a disallowed special token (it may come from a user who wants to pass
                for the system), or lone surrogates.

        Example:
            >>> tokenizer.encode("one<|end|>", allowed_special={"<|end|>"})
        """
        content = _to_utf8(text)
        enabled, refused = self._added.masks(allowed_special, disallowed_special)
        self._added.refuse(content, refused)
        ids = self._encode_bytes(content, enabled)
        return [*self._template.before, *ids, *self._template.after] if add_special_tokens else ids

    def encode_ordinary(self, text: str | bytes) -> list[int]:
        """Turn text into ids, special tokens in it being ordinary text. Bytes need not be UTF-8."""
        content = text if isinstance(text, bytes) else _to_utf8(text)
        return self._encode_bytes(content, self._added.ordinary)

    def _encode_bytes(self, content: bytes, enabled: Masks) -> list[int]:
        if not self._added.acts(enabled):
            return self._model.encode(content, begins=True)
        ids: list[int] = []
        for stretch in self._added.cut(content, enabled):
            if stretch.token is None:
                ids += self._model.encode(stretch.text, begins=stretch.begin == 0)
            else:
                ids.append(stretch.token)
        return ids

    def encode_with_offsets(
        self,
        text: str,
        *,
        allowed_special: AllowedSpecial = (),
        disallowed_special: AllowedSpecial = "all",
    ) -> TokenOffsets:
        """Turn text into ids, and say where each lies in it; arguments and errors as in `encode`.

        White space that a token's `lstrip` or `rstrip` takes along belongs to the token. A token that cuts a
        character touches all of it in characters, and its own bytes of it in bytes.
        """
        content = _to_utf8(text)
        enabled, refused = self._added.masks(allowed_special, disallowed_special)
        self._added.refuse(content, refused)
        ids: list[int] = []
        spans = [np.zeros((0, 2), np.int64)]
        for stretch in self._added.cut(content, enabled):
            if stretch.token is not None:
                ids.append(stretch.token)
                spans.append(np.array([[stretch.begin, stretch.end]], np.int64))
                continue
            begins = stretch.begin == 0
            part = np.array(self._model.encode(stretch.text, begins=begins), np.uint32)
            ids += part.tolist()
            sizes = self._decoder.lengths(part)
            spans.append(stretch.begin + self._model.spans(stretch.text, part, sizes, begins=begins))
        offsets = np.concatenate(spans)
        normal = self._added.normalize(content, enabled)
        return TokenOffsets(
            np.array(ids, np.uint32), offsets, char_offsets(normal, offsets), normal.decode("utf-8")
        )

    def encode_batch(
        self,
        texts: Texts | Sequence[bytes] | NDArray[np.str_ | np.object_],
        *,
        allowed_special: AllowedSpecial = (),
        disallowed_special: AllowedSpecial = (),
        end_id: int | None = None,
        num_threads: int = 0,
    ) -> TokenArray:
        """Turn many texts into ids, special tokens in them being ordinary text unless they are allowed.

        Args:
            texts: list or NumPy array of str or bytes, or an Arrow column of strings or binary of any library
                and layout, in chunks or not, which is read where it lies; null gives no tokens.
            allowed_special: special tokens that are recognised in the texts, or "all".
            disallowed_special: special tokens that no text may hold, or "all" others.
            end_id: id to put after each text, as token shards have it; any number below 2^32.
            num_threads: 0 takes all cores; the result does not depend on it.

        Returns:
            The ids, text after text.

        Raises:
            InputError: a text holds lone surrogates or a disallowed special token; names its index.
            TypeError: an element is neither str nor bytes.
        """
        if isinstance(texts, str | bytes):
            raise TypeError("texts must be a sequence of texts, got a single one; use encode")
        columns: Any = texts
        if not hasattr(texts, "__arrow_c_array__") and not hasattr(texts, "__arrow_c_stream__"):
            columns = to_list(texts)
        check_threads(num_threads)
        if end_id is not None:
            check_int("end_id", end_id, 0, (1 << 32) - 1)
        enabled, refused = self._added.masks(allowed_special, disallowed_special)
        self._added.refuse_batch(columns, refused)
        if self._is_direct(enabled):
            return TokenArray(*self._model.core.encode_texts(columns, end_id=end_id, num_threads=num_threads))
        return TokenArray(
            *self._batch_encoder.encode_texts(
                columns,
                raw_enabled=enabled.raw,
                normalized_enabled=enabled.normalized,
                end_id=end_id,
                num_threads=num_threads,
            )
        )

    def encode_files(
        self, paths: Sequence[str | Path], *, separator: str | bytes | None = None, num_threads: int = 0
    ) -> TokenArray:
        """Turn files into ids, one text a file, or several where `separator` stands between them.

        Args:
            paths: files, mapped into memory one after the other; their bytes need not be UTF-8.
            separator: cut each file here; it belongs to no text.
            num_threads: 0 takes all cores; a large file is shared between them.

        Raises:
            OSError: a file cannot be read.
        """
        if isinstance(paths, str | Path):
            raise TypeError("paths must be a list of paths, got a single one; pass [path]")
        check_threads(num_threads)
        mark = separator.encode() if isinstance(separator, str) else separator or b""
        if not isinstance(mark, bytes):
            raise TypeError(f"separator must be str or bytes, got {type(separator).__name__}")
        enabled = self._added.ordinary
        arrays = []
        for path in map(str, paths):
            if self._is_direct(enabled):
                arrays.append(TokenArray(*self._model.core.encode_file(path, mark, num_threads=num_threads)))
                continue
            parts = self._batch_encoder.encode_file(
                path,
                mark,
                raw_enabled=enabled.raw,
                normalized_enabled=enabled.normalized,
                num_threads=num_threads,
            )
            arrays.append(TokenArray(*parts))
        return join_arrays(arrays)

    def _is_direct(self, enabled: Masks) -> bool:
        return self._model.is_direct and not self._added.acts(enabled)

    def normalize(self, text: str) -> str:
        """Give what the normalizer makes of a text; the text itself where there is none."""
        return text if self._normalizer is None else self._normalizer(text)

    def save(self, path: str | Path) -> None:
        """Write the tokenizer.

        Args:
            path: a `.pylm` file to write all of it, ready to be loaded at once; a `.json` file to write a
                tokenizer.json; a `.tiktoken` file to write ranks, without special tokens; an existing folder,
                or a name without an ending for a new one, to write a tokenizer.json and a
                tokenizer_config.json, as `transformers` reads them.

        Raises:
            InputError: another ending; a form that cannot hold this tokenizer with the same ids, says why.
        """
        path = Path(path)
        if path.is_dir() or not (path.suffix or path.is_file()):
            config = json.dumps(write_config(self._config), ensure_ascii=False, indent=2)
            files = {
                path / "tokenizer.json": f"{self._to_json()}\n".encode(),
                path / "tokenizer_config.json": f"{config}\n".encode(),
            }
        elif path.suffix == _binary_format.SUFFIX:
            files = {path: self._to_binary()}
        elif path.suffix == ".tiktoken":
            files = {path: self._to_ranks(path)}
        elif path.suffix == ".json":
            files = {path: f"{self._to_json()}\n".encode()}
        else:
            raise InputError(
                f"{path}: what to write is not clear; expected a name that ends in .json, .pylm or .tiktoken "
                "or a folder: an existing one, or a name without an ending"
            )
        for file, content in files.items():
            with atomic_path(file) as temporary:
                temporary.write_bytes(content)

    def _to_ranks(self, path: Path) -> bytes:
        if not isinstance(self._model, ByteModel):
            raise InputError(f"{path}: a rank file holds byte-level BPE only; save a tokenizer.json")
        if self._normalizer is not None:
            raise InputError(f"{path}: a rank file cannot hold a normalizer; save a tokenizer.json")
        return _rank_format.write(self._model.vocabulary, ignore_merges=self._model.ignore_merges)

    def _parts(self) -> Parts:
        return Parts(self._model, self._added.tokens, self._normalizer, self._template)

    def _to_json(self) -> str:
        return json.dumps(_hf_format.write(self._parts()), ensure_ascii=False)

    def _to_binary(self) -> bytes:
        return _binary_format.write(self._parts(), self._config, self._decoder)

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple[object, ...]:
        """Pickle the bytes of a `.pylm` file; from protocol 5 on as a buffer that need not be copied."""
        content = self._to_binary()
        return type(self)._of_binary, (PickleBuffer(content) if operator.index(protocol) >= 5 else content,)

    @classmethod
    def _of_binary(cls, content: "ReadableBuffer") -> "Tokenizer":
        return cls._of_parts(
            "the bytes", *_binary_format.read("the bytes", _binary_format.of_buffer(content))
        )

    def to_transformers(self) -> "PreTrainedTokenizerFast":
        """Give the same tokenizer as `transformers` has it, with roles and chat template.

        Raises:
            InputError: `transformers` is not installed.
        """
        try:
            import tokenizers
            from transformers import PreTrainedTokenizerFast
        except ImportError as error:
            raise InputError(
                "to_transformers needs the packages transformers and tokenizers: pip install 'pylm-llm[hf]'"
            ) from error
        config = {k: v for k, v in vars(self._config).items() if v is not None}
        return PreTrainedTokenizerFast(
            tokenizer_object=tokenizers.Tokenizer.from_str(self._to_json()),
            clean_up_tokenization_spaces=False,
            **config,
        )

    def __repr__(self) -> str:
        return f"Tokenizer(vocab_size={self.vocab_size}, pattern={self.pattern!r})"


def _to_utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"the text holds a lone surrogate at character {error.start}, which no UTF-8 can express"
        ) from error
    except AttributeError:
        kind = type(text).__name__
        hint = "; encode_ordinary takes bytes" if kind == "bytes" else ""
        raise TypeError(f"text must be a str, got {kind}{hint}") from None
