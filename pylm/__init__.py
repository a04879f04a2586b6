"""Raw text to an aligned chat model: C++ for text, Triton for tensors, Python to assemble both."""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from pylm.text import Tokenizer, dedup, signals

__all__ = ["Tokenizer", "__version__", "dedup", "signals"]


def __getattr__(name: str) -> Any:
    """Import the text core on first use, so that `import pylm` costs nothing."""
    if name in ("Tokenizer", "dedup", "signals"):
        import pylm.text

        return getattr(pylm.text, name)
    raise AttributeError(f"module 'pylm' has no attribute {name!r}")
