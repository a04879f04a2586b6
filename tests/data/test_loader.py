from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from oracles import windows as oracle
from oracles.bytes_tokenizer import BytesTokenizer

from pylm.data.chat import SPECIAL_TOKENS
from pylm.data.loader import Batch, Loader
from pylm.data.mixture import MixtureConfig, MixtureStage
from pylm.data.pack import num_windows
from pylm.data.shards import Shard, open_shards
from pylm.data.tokenization import write_shards
from pylm.errors import InputError

SEQ_LEN = 16
STAGES = MixtureConfig(
    stages=(
        MixtureStage(until=0.5, weights={"web": 3, "code": 1}),
        MixtureStage(until=1.0, weights={"code": 1, "math": 1}),
    )
)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Shard]:
    rng = np.random.default_rng(0)
    sources = ["web"] * 60 + ["code"] * 30 + ["math"] * 5
    documents = [
        {"id": f"{source}-{i}", "text": "ab" * int(rng.integers(0, 20)), "source": source, "url": None}
        for i, source in enumerate(sources)
    ]
    schema = pa.schema([(field, pa.string()) for field in ("id", "text", "source", "url")])
    folder = tmp_path_factory.mktemp("tokens")
    write_shards([pa.RecordBatch.from_pylist(documents, schema)], BytesTokenizer(SPECIAL_TOKENS), folder)
    return dict(open_shards(folder))


def make(shards: dict[str, Shard], mixture: MixtureConfig = STAGES, **options: int) -> Loader:
    defaults = {"seq_len": SEQ_LEN, "batch_size": 12, "num_steps": 40, "seed": 5}
    return Loader(shards, mixture, **{**defaults, **options})


def assert_same(a: Batch, b: Batch) -> None:
    assert a.ids_BT.tolist() == b.ids_BT.tolist()
    assert a.targets_BT.tolist() == b.targets_BT.tolist()
    assert (a.sources, a.samples) == (b.sources, b.samples)
    for x, y in ((a.positions_BT, b.positions_BT), (a.documents_BT, b.documents_BT)):
        assert (x is None) == (y is None)
        if x is not None and y is not None:
            assert x.tolist() == y.tolist()


def test_batches_against_the_slow_version(shards: dict[str, Shard]) -> None:
    loader = make(shards)
    for step in (0, 1, 19, 20, 39):
        batch = loader.batch(step)
        for row, (source, sample) in enumerate(zip(batch.sources, batch.samples, strict=True)):
            place = loader.sample(sample)
            assert place.source == source
            shard = shards[source]
            ids, targets, positions, documents = oracle.read_window(
                shard.tokens.tolist(), place.window, SEQ_LEN, shard.meta.eos_id
            )
            assert batch.ids_BT[row].tolist() == ids
            assert batch.targets_BT[row].tolist() == targets
            assert batch.positions_BT is not None
            assert batch.documents_BT is not None
            assert batch.positions_BT[row].tolist() == positions
            assert batch.documents_BT[row].tolist() == documents


def test_a_batch_depends_on_nothing_read_before(shards: dict[str, Shard]) -> None:
    loader = make(shards)
    for step in range(30):
        loader.batch(step)
    for step in (3, 29, 30):
        assert_same(loader.batch(step), make(shards).batch(step))
        assert_same(loader.batch(step), make(dict(reversed(shards.items()))).batch(step))


@pytest.mark.parametrize("world_size", [1, 2, 3, 12])
def test_ranks_share_the_batch(shards: dict[str, Shard], world_size: int) -> None:
    loader = make(shards)
    for step in (0, 25):
        whole = loader.batch(step)
        parts = [loader.batch(step, rank=rank, world_size=world_size) for rank in range(world_size)]
        assert np.concatenate([part.ids_BT for part in parts]).tolist() == whole.ids_BT.tolist()
        assert np.concatenate([part.targets_BT for part in parts]).tolist() == whole.targets_BT.tolist()
        assert [s for part in parts for s in part.samples] == whole.samples
        assert [s for part in parts for s in part.sources] == whole.sources


def test_seeds_differ(shards: dict[str, Shard]) -> None:
    assert make(shards).batch(0).ids_BT.tolist() != make(shards, seed=6).batch(0).ids_BT.tolist()


def test_an_epoch_reads_every_window_once(shards: dict[str, Shard]) -> None:
    loader = make(shards, num_steps=60)
    orders: dict[tuple[str, int], list[int]] = {}
    for number in range(loader.num_samples):
        sample = loader.sample(number)
        orders.setdefault((sample.source, sample.epoch), []).append(sample.window)
    complete = 0
    for (source, epoch), windows in orders.items():
        count = num_windows(len(shards[source].tokens), SEQ_LEN)
        assert len(set(windows)) == len(windows)
        if (source, epoch + 1) in orders:
            complete += 1
            assert sorted(windows) == list(range(count))
            assert windows != orders[source, epoch + 1]
    assert complete > 5
    totals = {name: sum(len(w) for (s, _), w in orders.items() if s == name) for name in shards}
    for name, total in totals.items():
        assert loader.epochs[name] == total / num_windows(len(shards[name].tokens), SEQ_LEN)


def test_two_sources_of_one_size_have_orders_of_their_own(tmp_path: Path) -> None:
    rows = [{"id": f"{s}{i}", "text": "x" * 15, "source": s, "url": None} for s in "ab" for i in range(40)]
    schema = pa.schema([(field, pa.string()) for field in ("id", "text", "source", "url")])
    write_shards([pa.RecordBatch.from_pylist(rows, schema)], BytesTokenizer(SPECIAL_TOKENS), tmp_path)
    loader = make(dict(open_shards(tmp_path)), MixtureConfig(), num_steps=6)
    samples = [loader.sample(i) for i in range(72)]
    a, b = ([s.window for s in samples if s.source == name] for name in "ab")
    assert a != b


def test_stages(shards: dict[str, Shard]) -> None:
    loader = make(shards)
    assert [loader.stage(step) for step in (0, 19, 20, 39)] == [0, 0, 1, 1]
    assert loader.batch(0).sources.count("web") == 9
    assert loader.batch(20).sources.count("math") == 6


def test_documents_behind(shards: dict[str, Shard]) -> None:
    """Every id of the batch, the last targets included, is counted to the document it was made from."""
    loader = make(shards)
    for step in (0, 21):
        expected = []
        for row in range(12):
            sample = loader.sample(step * 12 + row)
            shard = shards[sample.source]
            owner_N = np.repeat(np.arange(len(shard.offsets) - 1), np.diff(shard.offsets))
            owners = owner_N[sample.start : sample.stop].tolist()
            for index in sorted(set(owners)):
                expected.append((row, shard.documents([index])[0].id, owners.count(index)))
        behind = loader.documents_behind(step)
        assert [(d.row, d.document.id, d.num_tokens) for d in behind] == expected
        assert all(d.sample == step * 12 + d.row for d in behind)
        halves = [loader.documents_behind(step, rank=rank, world_size=2) for rank in range(2)]
        assert [d for half in halves for d in half] == behind


def test_no_mask_without_borders(tmp_path: Path) -> None:
    rows = [{"id": "a", "text": "x" * 15 * SEQ_LEN, "source": "web", "url": None}]
    schema = pa.schema([(field, pa.string()) for field in ("id", "text", "source", "url")])
    write_shards([pa.RecordBatch.from_pylist(rows, schema)], BytesTokenizer(SPECIAL_TOKENS), tmp_path)
    batch = make(dict(open_shards(tmp_path)), MixtureConfig(), batch_size=15, num_steps=1).batch(0)
    assert batch.positions_BT is None
    assert batch.documents_BT is None
    assert batch.tensors()[2:] == (None, None)


def test_tensors(shards: dict[str, Shard]) -> None:
    batch = make(shards).batch(0)
    ids_BT, targets_BT, positions_BT, documents_BT = batch.tensors("cpu")
    assert ids_BT.dtype == targets_BT.dtype == torch.int64
    assert positions_BT is not None
    assert documents_BT is not None
    for tensor, array in (
        (ids_BT, batch.ids_BT),
        (targets_BT, batch.targets_BT),
        (positions_BT, batch.positions_BT),
        (documents_BT, batch.documents_BT),
    ):
        assert array is not None
        assert tensor.tolist() == array.tolist()


def test_bad_arguments(shards: dict[str, Shard], tmp_path: Path) -> None:
    loader = make(shards)
    with pytest.raises(InputError, match="batch_size=12 cannot be shared evenly by 5 ranks"):
        loader.batch(0, world_size=5)
    with pytest.raises(InputError, match=r"rank must be in 0\.\.1, got 2"):
        loader.batch(0, rank=2, world_size=2)
    with pytest.raises(InputError, match=r"step must be in 0\.\.39, got 40"):
        loader.batch(40)
    with pytest.raises(InputError, match="seq_len must be 1 or more, got 0"):
        make(shards, seq_len=0)
    with pytest.raises(InputError, match="math"):
        make({name: shard for name, shard in shards.items() if name != "math"})
    rows = [{"id": "a", "text": "", "source": "tiny", "url": None}]
    schema = pa.schema([(field, pa.string()) for field in ("id", "text", "source", "url")])
    write_shards([pa.RecordBatch.from_pylist(rows, schema)], BytesTokenizer(SPECIAL_TOKENS), tmp_path)
    with pytest.raises(InputError, match="source tiny has 1 tokens, at least 2 are needed"):
        make(dict(open_shards(tmp_path)), MixtureConfig())
