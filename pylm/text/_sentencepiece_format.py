"""SentencePiece's own file, `tokenizer.model`."""

from pathlib import Path

import numpy as np

from pylm import _core
from pylm.errors import InputError
from pylm.text._added_tokens import AddedToken
from pylm.text._character_model import CONTROL, UNKNOWN, CharacterModel
from pylm.text._models import Parts


def read(path: Path, content: bytes) -> Parts:
    """Read a `tokenizer.model`; `path` is for messages.

    Raises:
        InputError: damaged data, or a model that is not BPE; names the field or the piece.
    """
    try:
        file = _core.read_sentencepiece_model(content)
    except ValueError as error:
        raise InputError(f"{path}: not a SentencePiece BPE model: {error}") from error
    vocabulary, kinds = file["vocabulary"], file["kinds"]
    model = CharacterModel(
        vocabulary=vocabulary,
        kinds=kinds,
        extra_characters=file["extra_characters"],
        byte_fallback=file["byte_fallback"],
        prefix="always" if file["add_dummy_prefix"] else "never",
        space_is_mark=file["escape_whitespaces"],
        collapse_spaces=file["remove_extra_whitespaces"],
        charsmap=file["charsmap"],
    )
    special = np.flatnonzero((kinds == CONTROL) | (kinds == UNKNOWN)).tolist()
    return Parts(model, [AddedToken(vocabulary.token(i).decode(), i) for i in special])
