"""Masks against loops, and the key-value cache against attention over everything at once."""

import pytest
import torch

from pylm.model.attention import Context, KVCache, cache_mask, document_mask

pytestmark = pytest.mark.usefixtures("attention_kind")


def test_document_mask_is_causal_within_documents() -> None:
    documents_BT = torch.tensor([[0, 0, 1, 1, 1, 2], [0, 0, 0, 0, 0, 0], [0, 1, 2, 3, 4, 5]])
    mask = document_mask(documents_BT)
    assert mask.shape == (3, 1, 6, 6)
    assert mask.dtype == torch.bool
    for b, row in enumerate(documents_BT.tolist()):
        for t in range(6):
            assert mask[b, 0, t].tolist() == [s <= t and row[s] == row[t] for s in range(6)]


@pytest.mark.parametrize(("start", "length"), [(0, 5), (3, 2), (4, 1), (0, 1)])
def test_cache_mask_shows_valid_columns_up_to_ones_own(start: int, length: int) -> None:
    valid_BS = torch.tensor([[True] * 8, [False, False, True, True, True, True, True, True], [False] * 8])
    valid_BS[:, start + length - 1] = True  # the caller marks what it adds; one column at the least
    mask = cache_mask(valid_BS, start, length).expand(3, 1, length, start + length)
    for b in range(3):
        for t in range(length):
            own = start + t
            expected = [(s <= own and bool(valid_BS[b, s])) or s == own for s in range(start + length)]
            assert mask[b, 0, t].tolist() == expected


def test_cached_keys_are_views_of_one_buffer(make_model) -> None:
    config = make_model(num_kv_heads=2).config
    cache = KVCache(config, 3, 7, like=torch.zeros((), dtype=torch.float64))
    assert len(cache.layers) == config.num_layers
    layer = cache.layers[0]
    assert layer.k_BKSC.shape == (3, 2, 7, 4)
    assert layer.k_BKSC.dtype == torch.float64
    first, second = torch.randn(3, 2, 4, 4).double(), torch.randn(3, 2, 2, 4).double()
    layer.append(first, -first, 0)
    keys, values = layer.append(second, -second, 4)
    assert torch.equal(keys, torch.cat([first, second], dim=2))
    assert torch.equal(values, -keys)
    assert keys.data_ptr() == layer.k_BKSC.data_ptr()


def test_rows_are_kept_and_repeated_in_every_layer(make_model) -> None:
    cache = KVCache(make_model().config, 3, 4, like=torch.zeros(()))
    for number, layer in enumerate(cache.layers):
        layer.k_BKSC += torch.arange(3.0).view(3, 1, 1, 1) + 10 * number
        layer.v_BKSC -= torch.arange(3.0).view(3, 1, 1, 1) + 10 * number
    cache.valid_BS[1, 2] = True
    cache.select_rows(torch.tensor([1, 1, 0, 2]))
    for number, layer in enumerate(cache.layers):
        assert (layer.k_BKSC[:, 0, 0, 0] - 10 * number).tolist() == [1, 1, 0, 2]
        assert torch.equal(layer.v_BKSC, -layer.k_BKSC)
    assert cache.valid_BS.sum(1).tolist() == [1, 1, 0, 0]


@pytest.mark.parametrize("options", [{"num_kv_heads": 2}, {"num_kv_heads": 1, "qk_norm": False}])
@pytest.mark.parametrize("pieces", [(1,) * 7, (4, 3), (5, 1, 1)])
def test_piece_by_piece_equals_all_at_once(
    make_model, options: dict[str, object], pieces: tuple[int, ...]
) -> None:
    model = make_model(**options)
    ids_BT = torch.tensor([[1, 2, 3, 4, 5, 6, 7], [9, 8, 7, 6, 5, 4, 3]])
    expected_BTD = model(ids_BT)
    cache = KVCache(model.config, 2, 10, like=model.embedding.weight.detach())
    got, start = [], 0
    with torch.no_grad():
        for length in pieces:
            columns = slice(start, start + length)
            cache.valid_BS[:, columns] = True
            positions_BT = torch.arange(start, start + length).expand(2, -1)
            got.append(model(ids_BT[:, columns], positions_BT=positions_BT, cache=cache))
            start += length
            assert cache.length == start
    torch.testing.assert_close(torch.cat(got, dim=1), expected_BTD, rtol=1e-11, atol=1e-11)


def test_a_padded_query_gives_numbers_and_nobody_sees_it(make_model) -> None:
    model = make_model()
    cache = KVCache(model.config, 1, 6, like=model.embedding.weight.detach())
    cache.valid_BS[:, 2:] = True
    with torch.no_grad():
        hidden_BTD = model(
            torch.tensor([[0, 0, 5, 6, 7, 8]]), positions_BT=torch.tensor([[0, 0, 0, 1, 2, 3]]), cache=cache
        )
    assert hidden_BTD.isfinite().all()
    expected_BTD = model(torch.tensor([[5, 6, 7, 8]]))
    torch.testing.assert_close(hidden_BTD[:, 2:], expected_BTD, rtol=1e-11, atol=1e-11)


def test_strided_input(make_model) -> None:
    model = make_model(num_kv_heads=2)
    attention = model.blocks[0].attention
    x_TBD = torch.randn(6, 2, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    context = Context(model.cos, model.sin)
    expected = attention(x_TBD.transpose(0, 1).contiguous(), context)
    torch.testing.assert_close(attention(x_TBD.transpose(0, 1), context), expected, rtol=1e-12, atol=1e-12)
