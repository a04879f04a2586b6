"""Triton kernels, one op a file; installed as `pylm.kernels`. They know only tensors."""

if __name__ != "pylm.kernels":
    raise ImportError(
        f"this package is pylm.kernels, but it was imported as {__name__!r}; "
        "install pylm (pip install -e .) and import pylm.kernels"
    )
