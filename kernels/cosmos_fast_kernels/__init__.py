"""Triton kernels of cosmos-fast: one operation a file, each with its reference in plain torch."""
