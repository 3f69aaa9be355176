"""The benchmark suite: which library, device and kernel is fastest, and how right each one is.

``python -m bench`` in a checkout, ``kldiv bench`` from an installed package, where this folder is
`kldiv._bench`; hence all imports among its files are relative.
"""
