"""Which implementation runs each fused operation: only this package knows a kernel has a fallback.

``choice`` is :class:`Ops` and how one is chosen, ``attention`` and ``products`` the choices that
depend on shapes, ``backends`` and ``kernels`` what may be chosen, ``fallback`` what leads back to
torch, ``ahead`` what compiles kernels before they are launched. Nothing outside imports from the
files.
"""

from cosmos_fast.model.ops.ahead import compiling, expected, name_tests
from cosmos_fast.model.ops.attention import TableAttention, _failure
from cosmos_fast.model.ops.choice import (
    GatedLayerNormModulate,
    GatedResidual,
    HeadNorm,
    LayerNormModulate,
    Ops,
    QkNormRope,
    RmsSilu,
    Upsample,
    _with_kernels,
)
from cosmos_fast.model.ops.products import Product, no_product, table_product

__all__ = [
    "GatedLayerNormModulate",
    "GatedResidual",
    "HeadNorm",
    "LayerNormModulate",
    "Ops",
    "Product",
    "QkNormRope",
    "RmsSilu",
    "TableAttention",
    "Upsample",
    "_failure",
    "_with_kernels",
    "compiling",
    "expected",
    "name_tests",
    "no_product",
    "table_product",
]
