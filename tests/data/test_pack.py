import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import windows as oracle

from pylm.data.pack import IGNORE, cut_windows, num_windows, number_documents, pack_rows, pad_rows
from pylm.errors import InputError

EOS = 0
documents = st.lists(st.lists(st.integers(1, 9), max_size=12), min_size=1, max_size=8)


def stream(documents: list[list[int]]) -> np.ndarray:
    return np.array([id for document in documents for id in (*document, EOS)], dtype=np.uint16)


def cut_all(tokens: np.ndarray, seq_len: int) -> tuple[np.ndarray, np.ndarray]:
    count = num_windows(len(tokens), seq_len)
    return cut_windows([(tokens, w) for w in range(count)], seq_len=seq_len, eos_ids=[EOS] * count)


@given(documents, st.integers(1, 15))
@settings(max_examples=60, deadline=None)
def test_windows_against_the_slow_version(documents: list[list[int]], seq_len: int) -> None:
    tokens = stream(documents)
    ids_BT, targets_BT = cut_all(tokens, seq_len)
    positions_BT, documents_BT = number_documents(ids_BT == EOS)
    expected = [oracle.read_window(tokens.tolist(), w, seq_len, EOS) for w in range(len(ids_BT))]
    assert ids_BT.tolist() == [row[0] for row in expected]
    assert targets_BT.tolist() == [row[1] for row in expected]
    if documents_BT is None or positions_BT is None:
        assert all(set(row[3]) == {0} for row in expected)
    else:
        assert positions_BT.tolist() == [row[2] for row in expected]
        assert documents_BT.tolist() == [row[3] for row in expected]


@given(documents, st.integers(1, 15))
@settings(max_examples=40, deadline=None)
def test_every_token_once_an_epoch(documents: list[list[int]], seq_len: int) -> None:
    tokens = stream(documents)
    ids_BT, targets_BT = cut_all(tokens, seq_len)
    is_real_BT = targets_BT != IGNORE
    assert ids_BT[is_real_BT].tolist() == tokens[:-1].tolist()
    assert targets_BT[is_real_BT].tolist() == tokens[1:].tolist()


@given(documents, st.integers(2, 15))
@settings(max_examples=40, deadline=None)
def test_nothing_leaks(documents: list[list[int]], seq_len: int) -> None:
    """Whatever an input may attend to (same number, not later) is of its own document."""
    tokens = stream(documents)
    # An end of text as an input belongs to the document that follows it.
    owner = np.cumsum(tokens == EOS)
    ids_BT, _ = cut_all(tokens, seq_len)
    positions_BT, documents_BT = number_documents(ids_BT == EOS)
    for w, ids in enumerate(ids_BT):
        for t in range(min(len(ids), len(tokens) - w * seq_len)):
            number = 0 if documents_BT is None else documents_BT[w, t]
            seen = [s for s in range(t + 1) if documents_BT is None or documents_BT[w, s] == number]
            assert {owner[w * seq_len + s] for s in seen} == {owner[w * seq_len + t]}
            assert len(seen) == (t if positions_BT is None else positions_BT[w, t]) + 1


def test_one_document_needs_no_mask() -> None:
    assert number_documents(np.zeros((2, 5), dtype=bool)) == (None, None)
    opens_BT = np.array([[True, False, False]])
    assert number_documents(opens_BT) == (None, None)
    assert opens_BT[0, 0], "the input is left as it was"
    assert number_documents(np.zeros((2, 0), dtype=bool)) == (None, None)


@pytest.mark.parametrize(
    ("num_tokens", "expected"), [(0, 0), (1, 0), (2, 1), (9, 1), (10, 2), (17, 2), (18, 3)]
)
def test_num_windows(num_tokens: int, expected: int) -> None:
    assert num_windows(num_tokens, 8) == expected


Row = tuple[list[int], list[bool]]


@st.composite
def chat_rows(draw: st.DrawFn) -> list[Row]:
    sizes = draw(st.lists(st.integers(2, 12), max_size=14))
    rows = []
    for size in sizes:
        ids = draw(st.lists(st.integers(1, 99), min_size=size, max_size=size))
        mask = draw(st.lists(st.booleans(), min_size=size, max_size=size))
        rows.append((ids, mask))
    return rows


def expected_targets(row: Row) -> list[int]:
    ids, mask = row
    return [ids[t + 1] if mask[t + 1] else IGNORE for t in range(len(ids) - 1)]


@given(chat_rows(), st.integers(11, 30))
@settings(max_examples=60, deadline=None)
def test_pack_rows(rows: list[Row], seq_len: int) -> None:
    packed = pack_rows(rows, seq_len, pad_id=7)
    assert packed.ids_BT.shape == packed.targets_BT.shape == (len(packed.members), seq_len)
    assert sorted(i for members in packed.members for i in members) == list(range(len(rows)))
    for b, members in enumerate(packed.members):
        start = 0
        for number, member in enumerate(members):
            ids, _ = rows[member]
            place = slice(start, start + len(ids) - 1)
            assert packed.ids_BT[b, place].tolist() == ids[:-1]
            assert packed.targets_BT[b, place].tolist() == expected_targets(rows[member])
            if packed.positions_BT is not None and packed.documents_BT is not None:
                assert packed.positions_BT[b, place].tolist() == list(range(len(ids) - 1))
                assert set(packed.documents_BT[b, place].tolist()) == {number}
            else:
                assert start == 0
            start += len(ids) - 1
        assert (packed.ids_BT[b, start:] == 7).all()
        assert (packed.targets_BT[b, start:] == IGNORE).all()
        if packed.documents_BT is not None:
            assert (packed.documents_BT[b, start:] == len(members)).all()


@given(st.lists(st.integers(1, 20), max_size=40), st.integers(20, 50))
@settings(max_examples=60, deadline=None)
def test_first_fit_decreasing(sizes: list[int], capacity: int) -> None:
    rows = [([1] * (size + 1), [True] * (size + 1)) for size in sizes]
    assert pack_rows(rows, capacity).members == oracle.first_fit_decreasing(sizes, capacity)


@given(chat_rows(), st.integers(1, 9))
@settings(max_examples=40, deadline=None)
def test_pad_rows(rows: list[Row], multiple_of: int) -> None:
    padded = pad_rows(rows, multiple_of=multiple_of, pad_id=7)
    longest = max((len(ids) - 1 for ids, _ in rows), default=0)
    assert padded.ids_BT.shape[1] % multiple_of == 0
    assert longest <= padded.ids_BT.shape[1] < longest + multiple_of
    for b, row in enumerate(rows):
        size = len(row[0]) - 1
        assert padded.ids_BT[b].tolist() == [*row[0][:-1], *[7] * (padded.ids_BT.shape[1] - size)]
        assert padded.targets_BT[b, :size].tolist() == expected_targets(row)
        assert (padded.targets_BT[b, size:] == IGNORE).all()
    assert padded.positions_BT is None
    assert padded.documents_BT is None


def test_bad_rows() -> None:
    with pytest.raises(InputError, match="row 1 has 6 tokens, and at most seq_len \\+ 1 = 5 fit"):
        pack_rows([([1, 2], [True, True]), ([1] * 6, [True] * 6)], 4)
    with pytest.raises(InputError, match="row 0 has 1 tokens"):
        pad_rows([([1], [True])])
    with pytest.raises(InputError, match="row 0 has 2 ids and a mask of 1"):
        pack_rows([([1, 2], [True])], 8)
