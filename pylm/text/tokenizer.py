"""BPE: text to token ids and back, with the ids of tiktoken, SentencePiece and Hugging Face tokenizers."""

import json
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import regex
import xxhash
from numpy.typing import NDArray

from pylm import _core
from pylm.errors import InputError
from pylm.files import atomic_path
from pylm.text import _hf_format, _rank_format, _sentencepiece_format
from pylm.text._training import Ties, count_corpus, learn_merges
from pylm.text.patterns import PATTERNS, PretokenPattern, find_pattern
from pylm.text.texts import Texts, to_list
from pylm.text.word_counter import TextBatches, TrainingProgress, WordCounter

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class TokenArray:
    """Token ids of many texts, end to end.

    Attributes:
        ids: uint32 (N,) ids of all texts.
        offsets: int64 (num_docs + 1,); text i is `ids[offsets[i] : offsets[i + 1]]`.
    """

    ids: NDArray[np.uint32]
    offsets: NDArray[np.int64]

    def __len__(self) -> int:
        """Number of texts."""
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> NDArray[np.uint32]:
        """Ids of one text, a view."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"text {index} of {len(self)}")
        index %= len(self)
        return self.ids[self.offsets[index] : self.offsets[index + 1]]

    def __iter__(self) -> Iterator[NDArray[np.uint32]]:
        return (self[i] for i in range(len(self)))


class Tokenizer:
    """A byte-level BPE tokenizer. Immutable; use one from as many threads as you like."""

    def __init__(
        self,
        tokens: Sequence[bytes],
        merges: NDArray[np.uint32],
        *,
        pattern: str | PretokenPattern,
        special_tokens: Mapping[str, int],
        ignore_merges: bool = False,
        normalizer: Literal["NFC"] | None = None,
    ) -> None:
        """Assemble a tokenizer; `load` and `train` are the usual ways.

        Args:
            tokens: bytes of each id, without special tokens (empty where an id has none).
            merges: uint32 (num_merges, 4) rows of left id, right id, merged id, rank.
            pattern: the pre-tokenization: a key of `PATTERNS`, or a regular expression, which is slower.
            special_tokens: text to id; ids may lie within or past `tokens`.
            ignore_merges: take a piece that is a token whole before any merge.
            normalizer: Unicode form that text is brought to first.

        Raises:
            InputError: the parts do not fit each other; names the entry.
        """
        self._pretoken = find_pattern(pattern)
        self.pattern = self._pretoken.name
        self._tokens = tuple(tokens)
        self._merges = merges
        self._special = dict(special_tokens)
        self._ignore_merges = ignore_merges
        self._normalizer = normalizer
        self._special_by_id = {v: k for k, v in self._special.items()}
        self._vocab_size = max(len(self._tokens), *(i + 1 for i in self._special.values()), 0)
        self._core: _core.BpeEncoder | _core.SentencePieceEncoder
        try:
            # Pieces of a custom pattern are cut here, and each is a whole text for the core.
            machine = self._pretoken.machine() or _core.Pattern("whole")
            self._core = _core.BpeEncoder(self._tokens, merges, machine, ignore_merges=ignore_merges)
        except ValueError as error:
            raise InputError(str(error)) from error
        names = sorted(self._special, key=len, reverse=True)
        self._special_pattern = regex.compile("|".join(map(regex.escape, names))) if names else None

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        pattern: str | None = None,
        special_tokens: Mapping[str, int] | None = None,
    ) -> "Tokenizer":
        """Read a tokenizer.json, a rank file, a SentencePiece model, or a Hugging Face model folder.

        Args:
            path: the file, or a folder with a tokenizer.json or a tokenizer.model. What a tokenizer.model
                is, ranks (Llama 3) or a model of SentencePiece (Llama 2), shows in its first bytes.
            pattern: pre-tokenization of a rank file, which does not name it; see `PATTERNS`.
            special_tokens: of a rank file, which does not hold them.

        Raises:
            InputError: no such file, a damaged entry, or a feature that cannot be reproduced exactly.

        Example:
            >>> Tokenizer.load("cl100k_base.tiktoken", pattern="cl100k").encode("hello world")
            [15339, 1917]
        """
        path = Path(path)
        if path.is_dir():
            has_model = not (path / "tokenizer.json").exists() and (path / "tokenizer.model").exists()
            path = path / ("tokenizer.model" if has_model else "tokenizer.json")
        if not path.is_file():
            raise InputError(
                f"no tokenizer at {path}; expected a tokenizer.json, a tokenizer.model, a .tiktoken file or "
                "a folder"
            )
        if _sentencepiece_format.is_for(path):
            from pylm.text._sentencepiece import SentencePieceTokenizer  # it derives from this class

            return SentencePieceTokenizer(_sentencepiece_format.read(path))
        if path.suffix in (".tiktoken", ".model"):
            if pattern is None:
                raise InputError(
                    f"{path}: a rank file does not name its pattern; give pattern=, one of "
                    f"{', '.join(PATTERNS)}"
                )
            tokens = _rank_format.read(path)
            return cls(
                tokens,
                _rank_format.merges_of(tokens),
                pattern=pattern,
                special_tokens=special_tokens or {},
                ignore_merges=True,
            )
        parts = _hf_format.read(path)
        return cls(
            parts.tokens,
            parts.merges,
            pattern=pattern or parts.pattern,
            special_tokens=parts.special_tokens,
            ignore_merges=parts.ignore_merges,
            normalizer=parts.normalizer,
        )

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
            corpus: texts, Arrow string arrays, paths of UTF-8 files, or what a `WordCounter` has counted,
                with its pattern. Read a part at a time: memory grows with the different pieces only.
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
        special = {text: i for i, text in enumerate(special_tokens)}
        return cls(tokens, merges, pattern=counter.pretoken, special_tokens=special)

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return self._vocab_size

    @property
    def special_tokens(self) -> dict[str, int]:
        """Special tokens and their ids."""
        return dict(self._special)

    @property
    def fingerprint(self) -> str:
        """Hash of all that decides ids: equal for tokenizers that give equal ids."""
        digest = xxhash.xxh3_128()
        for part in (
            self.pattern if self._pretoken.has_machine else repr(self._pretoken.expressions),
            str(self._ignore_merges),
            str(self._normalizer),
            str(sorted(self._special.items())),
        ):
            digest.update(part.encode() + b"\0")
        digest.update(self._merges.tobytes())
        for token in self._tokens:
            digest.update(len(token).to_bytes(4, "little") + token)
        return digest.hexdigest()

    def encode(self, text: str, *, allowed_special: Collection[str] | Literal["all"] = ()) -> list[int]:
        """Turn text into ids.

        Args:
            text: any string without lone surrogates.
            allowed_special: special tokens that are recognised in the text, or "all".

        Raises:
            InputError: the text holds a special token that is not allowed (it may come from a user who
                wants to pass for the system), or lone surrogates.

        Example:
            >>> tokenizer.encode("one<|end|>", allowed_special={"<|end|>"})
        """
        if self._special_pattern is None:
            return self.encode_ordinary(text)
        allowed = self._special.keys() if allowed_special == "all" else set(allowed_special)
        if unknown := set(allowed) - self._special.keys():
            raise InputError(
                f"allowed_special has {sorted(unknown)[0]!r}, which is no special token of this tokenizer"
            )
        ids: list[int] = []
        start = 0
        for match in self._special_pattern.finditer(text):
            name = match.group()
            if name not in allowed:
                raise InputError(
                    f"the text holds the special token {name!r} at character {match.start()}; pass "
                    f"allowed_special={{{name!r}}} to encode it as one, or use encode_ordinary for text"
                )
            ids += self._encode_part(text[start : match.start()], is_first=start == 0)
            ids.append(self._special[name])
            start = match.end()
        return ids + self._encode_part(text[start:], is_first=start == 0)

    def encode_ordinary(self, text: str | bytes) -> list[int]:
        """Turn text into ids, special tokens in it being ordinary text. Bytes need not be UTF-8."""
        content = self._to_bytes(text) if isinstance(text, str) else text
        if not self._pretoken.has_machine:
            return [int(i) for i in self._encode_custom([content], None, 1).ids]
        return self._core.encode(content)

    def encode_batch(
        self,
        texts: Texts | Sequence[bytes] | NDArray[np.str_ | np.object_],
        *,
        end_id: int | None = None,
        num_threads: int = 0,
    ) -> TokenArray:
        """Turn many texts into ids, special tokens in them being ordinary text.

        Args:
            texts: list or NumPy array of str or bytes, or an Arrow column of strings or binary of any library
                and layout, in chunks or not, which is read where it lies; null gives no tokens.
            end_id: id to put after each text, as token shards have it; any number below 2^32.
            num_threads: 0 takes all cores; the result does not depend on it.

        Returns:
            The ids, text after text.

        Raises:
            InputError: a text holds lone surrogates; names its index.
            TypeError: an element is neither str nor bytes.
        """
        if isinstance(texts, str | bytes):
            raise TypeError("texts must be a sequence of texts, got a single one; use encode")
        columns: Any = texts
        if self._normalizer is not None:
            columns = [self._normalize(t) if isinstance(t, str) else t for t in to_list(texts)]
        elif not hasattr(texts, "__arrow_c_array__") and not hasattr(texts, "__arrow_c_stream__"):
            columns = to_list(texts)
        if not self._pretoken.has_machine:
            return self._encode_custom(to_list(columns), end_id, num_threads)
        return TokenArray(*self._core.encode_texts(columns, end_id=end_id, num_threads=num_threads))

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
        mark = separator.encode() if isinstance(separator, str) else separator or b""
        arrays = []
        for path in paths:
            if self._normalizer is None and self._pretoken.has_machine:
                arrays.append(TokenArray(*self._core.encode_file(str(path), mark, num_threads=num_threads)))
                continue
            content = Path(path).read_bytes()
            texts = content.split(mark) if mark else [content]
            if self._normalizer is not None:
                texts = [self._normalize(t.decode("utf-8", "replace")).encode() for t in texts]
            if self._pretoken.has_machine:
                arrays.append(
                    TokenArray(*self._core.encode_texts(texts, end_id=None, num_threads=num_threads))
                )
            else:
                arrays.append(self._encode_custom(texts, None, num_threads))
        return _join(arrays)

    def decode(self, ids: Iterable[int]) -> str:
        """Turn ids into text; bytes that are no UTF-8 become U+FFFD.

        Raises:
            InputError: an id that the vocabulary does not have.
        """
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Turn ids into bytes, special tokens into their text."""
        return b"".join(map(self.token_bytes, ids))

    def token_bytes(self, token_id: int) -> bytes:
        """Give the bytes of one id.

        Raises:
            InputError: an id that the vocabulary does not have.
        """
        token_id = int(token_id)
        if token_id in self._special_by_id:
            return self._special_by_id[token_id].encode()
        if not 0 <= token_id < len(self._tokens) or not self._tokens[token_id]:
            raise InputError(f"token id {token_id} is not in the vocabulary of {self.vocab_size}")
        return self._tokens[token_id]

    def save(self, path: str | Path) -> None:
        """Write a tokenizer.json that `tokenizers` and `transformers` load with the same ids."""
        document = _hf_format.write(
            _hf_format.Parts(
                tokens=list(self._tokens),
                merges=self._merges,
                pattern=self._pretoken,
                special_tokens=self._special,
                ignore_merges=self._ignore_merges,
                normalizer=self._normalizer,
            )
        )
        with atomic_path(Path(path)) as temporary:
            temporary.write_text(json.dumps(document, ensure_ascii=False) + "\n", encoding="utf-8")

    def __repr__(self) -> str:
        return f"Tokenizer(vocab_size={self.vocab_size}, pattern={self.pattern!r})"

    def _encode_part(self, text: str, *, is_first: bool) -> list[int]:
        """Turn what stands between special tokens into ids."""
        return self.encode_ordinary(text)

    def _to_bytes(self, text: str) -> bytes:
        try:
            return self._normalize(text).encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"the text holds a lone surrogate at character {error.start}, which no UTF-8 can express"
            ) from error

    def _encode_custom(self, texts: Sequence[Any], end_id: int | None, num_threads: int) -> TokenArray:
        """Encode texts whose pattern no machine knows, piece by piece."""
        pieces, borders = self._pretoken.split_all(texts)
        ids, offsets = self._core.encode_texts(pieces, end_id=None, num_threads=num_threads)
        offsets = offsets[borders]
        if end_id is not None:
            ids = np.insert(ids, offsets[1:], np.uint32(end_id))
            offsets = offsets + np.arange(len(offsets))
        return TokenArray(ids, offsets)

    def _normalize(self, text: str) -> str:
        return text if self._normalizer is None else unicodedata.normalize(self._normalizer, text)


def _join(arrays: list[TokenArray]) -> TokenArray:
    if len(arrays) == 1:
        return arrays[0]
    offsets = [np.zeros(1, np.int64)]
    total = 0
    for array in arrays:
        offsets.append(array.offsets[1:] + total)
        total += len(array.ids)
    ids = [array.ids for array in arrays]
    return TokenArray(np.concatenate(ids) if ids else np.zeros(0, np.uint32), np.concatenate(offsets))
