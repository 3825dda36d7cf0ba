"""What happens to a product into heads before it is stored: their norm, and rotary positions.

A consumer's part of a tile holds whole heads. In the layout of wgmma's sums each thread has, of
each of its rows, two columns in eight: feature j and its partner half a head on are in the same
thread, and four threads next to each other share a row. So the rotation moves nothing, and the norm
one number a row. All goes through in parts of 32 columns, as a thread has 128 sums already.

Axes: D features of a head.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared

from cosmos_fast_kernels import hopper_tma as tma
from cosmos_fast_kernels.linear_hopper_epilogue import halves


@gluon.jit
def joined(left, right):
    """The opposite of ``halves``: registers under other names."""
    ROWS: gl.constexpr = left.shape[0]
    COLUMNS: gl.constexpr = left.shape[1]
    return gl.join(left, right).permute((0, 2, 1)).reshape([ROWS, 2 * COLUMNS])


@gluon.jit
def part_of(x, PART: gl.constexpr, LAYOUT: gl.constexpr):
    """The 32 columns of x from ``PART`` · 32 on."""
    if x.shape[1] == 256:
        x = halves(x)[PART // 4 % 2]
    if x.shape[1] == 128:
        x = halves(x)[PART // 2 % 2]
    if x.shape[1] == 64:
        x = halves(x)[PART % 2]
    return gl.convert_layout(x, LAYOUT)


@gluon.jit
def norm_factor(result, eps, HEAD: gl.constexpr, D: gl.constexpr, LAYOUT: gl.constexpr):
    """1 / root mean square of each row of a head."""
    PARTS: gl.constexpr = D // 32
    first = part_of(result, HEAD * PARTS, LAYOUT)
    squares = first * first
    for part in gl.static_range(1, PARTS):
        other = part_of(result, HEAD * PARTS + part, LAYOUT)
        squares += other * other
    return gl.rsqrt(gl.sum(squares, axis=1) * (1.0 / D) + eps)


@gluon.jit
def normed_part(
    result,
    factor,
    weight_pointer,
    HEAD: gl.constexpr,
    PART: gl.constexpr,
    D: gl.constexpr,
    LAYOUT: gl.constexpr,
):
    """32 features of a head, normed."""
    feature = PART * 32 + gl.arange(0, 32, gl.SliceLayout(0, LAYOUT))
    weight = gl.load(weight_pointer + feature).to(gl.float32)
    return part_of(result, HEAD * (D // 32) + PART, LAYOUT) * factor[:, None] * weight[None, :]


@gluon.jit
def angle_offsets(row, rows, tokens, ROWS: gl.constexpr, D: gl.constexpr, LAYOUT: gl.constexpr):
    """Where the angles of each row's token start; beyond the end, those of the last row's."""
    index = gl.minimum(row + gl.arange(0, ROWS, gl.SliceLayout(1, LAYOUT)), rows - 1)
    return gl.cast(index % tokens, gl.int64) * (D // 2)


@gluon.jit
def angles(table_pointer, offset, PAIR: gl.constexpr, LAYOUT: gl.constexpr):
    """The cosine or sine of 32 angles of each row."""
    angle = PAIR * 32 + gl.arange(0, 32, gl.SliceLayout(0, LAYOUT))
    return gl.load((table_pointer + offset)[:, None] + angle[None, :])


@gluon.jit
def send_piece(value, y_desc, buffer, place, PIECE: gl.constexpr, BASE: gl.constexpr, CONFIG):
    """A piece of the output, 64 columns, on its way to memory."""
    ROOM: gl.constexpr = CONFIG.pieces
    LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 64, 16])
    row, column_piece = place
    shared = buffer.index(BASE + PIECE % ROOM)
    if PIECE >= ROOM:
        tma.store_wait(ROOM - 1)
    shared.store(gl.convert_layout(value, LAYOUT))
    fence_async_shared()
    tma.async_copy_shared_to_global(y_desc, [row, (column_piece + PIECE) * 64], shared)


@gluon.jit
def send_head(
    result,
    factor,
    weight_pointer,
    tables,
    y_desc,
    buffer,
    place,
    HEAD: gl.constexpr,
    CHANGE: gl.constexpr,
    BASE: gl.constexpr,
    CONFIG: gl.constexpr,
    D: gl.constexpr,
):
    """One head of a tile: as it is, normed, or normed and turned (``CHANGE``)."""
    LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 32, 16])
    PARTS: gl.constexpr = D // 32
    PAIRS: gl.constexpr = PARTS // 2
    DTYPE: gl.constexpr = y_desc.dtype
    for pair in gl.static_range(PAIRS):
        if CHANGE == "none":
            first = part_of(result, HEAD * PARTS + pair, LAYOUT)
            second = part_of(result, HEAD * PARTS + PAIRS + pair, LAYOUT)
        else:
            first = normed_part(result, factor, weight_pointer, HEAD, pair, D, LAYOUT)
            second = normed_part(result, factor, weight_pointer, HEAD, PAIRS + pair, D, LAYOUT)
        if CHANGE == "rope":
            cos_pointer, sin_pointer, offset = tables
            cos = angles(cos_pointer, offset, pair, LAYOUT)
            sin = angles(sin_pointer, offset, pair, LAYOUT)
            turned = first * cos - second * sin
            second = second * cos + first * sin
            first = turned
        if pair == 0:
            left = first.to(DTYPE)
            right = second.to(DTYPE)
        else:
            left = joined(left, first.to(DTYPE))
            right = joined(right, second.to(DTYPE))
    if D == 64:
        send_piece(joined(left, right), y_desc, buffer, place, HEAD, BASE, CONFIG)
    else:
        send_piece(left, y_desc, buffer, place, 2 * HEAD, BASE, CONFIG)
        send_piece(right, y_desc, buffer, place, 2 * HEAD + 1, BASE, CONFIG)


@gluon.jit
def finish_heads(
    result,
    descs,
    buffers,
    place,
    numbers,
    heads,
    CONSUMER: gl.constexpr,
    CONFIG: gl.constexpr,
    EPILOGUE: gl.constexpr,
):
    """The heads of a consumer's part of a tile, one by one, and on their way to memory."""
    _, _, _, y_desc = descs
    _, _, buffer = buffers
    _, _, _, rows, _, _ = numbers
    row, column_piece = place
    q_weight_pointer, k_weight_pointer, cos_pointer, sin_pointer, eps, tokens, q_heads = heads
    LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 32, 16])
    BASE: gl.constexpr = CONSUMER * CONFIG.pieces
    D: gl.constexpr = EPILOGUE.features
    if EPILOGUE.round_first:
        result = result.to(y_desc.dtype).to(gl.float32)
    for in_tile in gl.static_range(CONFIG.columns // D):
        head = column_piece * 64 // D + in_tile
        if EPILOGUE.kind == "norm":
            factor = norm_factor(result, eps, in_tile, D, LAYOUT)
            send_head(
                result,
                factor,
                q_weight_pointer,
                None,
                y_desc,
                buffer,
                place,
                in_tile,
                "norm",
                BASE,
                CONFIG,
                D,
            )
        elif head < 2 * q_heads:
            weight_pointer = q_weight_pointer
            if head >= q_heads:
                weight_pointer = k_weight_pointer
            factor = norm_factor(result, eps, in_tile, D, LAYOUT)
            offset = angle_offsets(row, rows, tokens, CONFIG.rows, D, LAYOUT)
            tables = (cos_pointer, sin_pointer, offset)
            send_head(
                result,
                factor,
                weight_pointer,
                tables,
                y_desc,
                buffer,
                place,
                in_tile,
                "rope",
                BASE,
                CONFIG,
                D,
            )
        else:
            send_head(
                result,
                None,
                None,
                None,
                y_desc,
                buffer,
                place,
                in_tile,
                "none",
                BASE,
                CONFIG,
                D,
            )
