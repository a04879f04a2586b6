"""Triton kernels, one op a file; installed as `pylm.kernels`. They know only tensors."""

if __name__ != "pylm.kernels":
    # Another published package has the name of this folder, and transformers asks for its version by
    # importing what it finds on the path, as a checkout is in an editable install. It is told that this is
    # none; what is really wanted from here is refused.
    __version__ = "0"
    __path__: list[str] = []

    def __getattr__(name: str) -> object:
        raise ImportError(
            f"this package is pylm.kernels, but it was imported as {__name__!r}; "
            f"install pylm (pip install -e .) and import pylm.kernels; {name!r} of another package "
            "is out of reach while this folder is on the path"
        )
