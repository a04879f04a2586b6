"""What general compressors need for the same text: the baselines a language model has to beat."""

import gzip
import lzma
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import zstandard

from pylm.errors import InputError


@dataclass(frozen=True)
class Compression:
    """Bits per byte of three compressors over one set of texts.

    Attributes:
        xz: `xz -9` over all texts in one stream, so that each text may refer to all before it: more
            context than the model gets.
        zstd: `zstd -19`, each text alone.
        gzip: `gzip -9`, each text alone.
        num_bytes: UTF-8 bytes of the texts.
    """

    xz: float
    zstd: float
    gzip: float
    num_bytes: int

    def to_json(self) -> dict[str, float | int]:
        """Return plain values under the names of the fields."""
        return asdict(self)


def compress(texts: Sequence[str]) -> Compression:
    """Compress texts and count.

    Container headers and checksums count, as they do on disk; for texts of more than a few hundred
    bytes they do not matter.

    Args:
        texts: the texts, at least one byte together.

    Returns:
        Compressed bits per byte of UTF-8.

    Raises:
        InputError: there is nothing to compress.
    """
    encoded = [text.encode("utf-8") for text in texts]
    num_bytes = sum(map(len, encoded))
    if num_bytes == 0:
        raise InputError(f"cannot compress {len(texts)} texts of 0 bytes; give texts that are not empty")
    zstd = zstandard.ZstdCompressor(level=19)
    sizes = {
        "xz": len(lzma.compress(b"".join(encoded), preset=9)),
        "zstd": sum(len(zstd.compress(data)) for data in encoded),
        "gzip": sum(len(gzip.compress(data, compresslevel=9, mtime=0)) for data in encoded),
    }
    return Compression(**{name: 8 * size / num_bytes for name, size in sizes.items()}, num_bytes=num_bytes)
