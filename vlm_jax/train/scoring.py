"""Scores of all pairs of rows and columns, in blocks over all devices."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from vlm_jax.train import sharding
from vlm_jax.train.batches import one_in_flight
from vlm_jax.types import PyTree, Variables

Score = Callable[[Variables, PyTree, PyTree], jax.Array]
"""(variables, rows `[R, ...]`, columns `[C, ...]`) -> values `[R, C, ...]`; compiled once per function object."""


class Block(NamedTuple):
    """Scores of some rows with some columns.

    Attributes:
      rows: Slice of all rows.
      columns: Slice of all columns.
      values: Scores, `[R, C, ...]`.
    """

    rows: slice
    columns: slice
    values: np.ndarray


def score_blocks(
    fn: Score,
    variables: Variables,
    rows: PyTree,
    columns: PyTree,
    mesh: Mesh | None = None,
    *,
    row_block: int,
    column_block: int,
) -> Iterator[Block]:
    """Score all pairs block by block; memory is bounded by two blocks.

    All processes of the mesh call this with the same arguments and exhaust the iterator, since all devices take part.
    The rows of a block are sharded over the axis `data`, and its columns are on every device. The last blocks are
    padded, so there is one shape to compile.

    Args:
      fn: Function that scores a block.
      variables: Variables of `fn`. Arrays that are not on the devices are copied there once.
      rows: Host array `[N, ...]`, or arrays by name; memory-mapped ones are read block by block.
      columns: Host array `[M, ...]`, or arrays by name; read once for every block of rows.
      mesh: Devices; without a mesh, the default device of this process.
      row_block: Number of rows per block; rounded up to a multiple of the data shards.
      column_block: Number of columns per block.

    Yields:
      The blocks, on process 0; nothing on the other processes.
    """
    variables = sharding.replicate(mesh, variables)
    if mesh is None:
        run = jax.jit(fn)
    else:
        run = jax.jit(fn, out_shardings=sharding.replicated(mesh))
        row_block = -(-row_block // mesh.shape["data"]) * mesh.shape["data"]

    def results() -> Iterator[Block]:
        for own in _slices(_length(rows), row_block):
            placed = _place(mesh, _filled(rows, own, row_block), sharded=True)
            for other in _slices(_length(columns), column_block):
                beside = _place(mesh, _filled(columns, other, column_block), sharded=False)
                yield Block(own, other, run(variables, placed, beside))

    first = mesh is None or jax.process_index() == 0
    for own, other, values in one_in_flight(results()):
        if first:
            yield Block(own, other, sharding.local_rows(values)[: own.stop - own.start, : other.stop - other.start])
        else:
            jax.block_until_ready(values)


def score_matrix(
    fn: Score,
    variables: Variables,
    rows: PyTree,
    columns: PyTree,
    mesh: Mesh | None = None,
    *,
    row_block: int,
    column_block: int,
) -> np.ndarray | None:
    """Return the scores of all pairs, `[N, M, ...]`, on process 0 and None on the others; see `score_blocks`."""
    sizes = _length(rows), _length(columns)
    matrix = None
    for block in score_blocks(fn, variables, rows, columns, mesh, row_block=row_block, column_block=column_block):
        if matrix is None:
            matrix = np.empty((*sizes, *block.values.shape[2:]), block.values.dtype)
        matrix[block.rows, block.columns] = block.values
    if 0 in sizes and (mesh is None or jax.process_index() == 0):
        empty = jax.eval_shape(fn, variables, rows, columns)
        return np.empty(empty.shape, empty.dtype)
    return matrix


def _length(tree: PyTree) -> int:
    return len(jax.tree.leaves(tree)[0])


def _slices(length: int, size: int) -> Iterator[slice]:
    return (slice(begin, min(begin + size, length)) for begin in range(0, length, size))


def _filled(tree: PyTree, place: slice, size: int) -> PyTree:
    """Return the rows at `place`, padded to `size` with the last of them.

    A repeated row is a valid input to any score, whereas a row of zeros may not be.
    """

    def fill(array: np.ndarray) -> np.ndarray:
        part = np.asarray(array[place])
        return np.concatenate([part, np.repeat(part[-1:], size - len(part), 0)]) if len(part) < size else part

    return jax.tree.map(fill, tree)


def _place(mesh: Mesh | None, tree: PyTree, *, sharded: bool) -> PyTree:
    if mesh is None:
        return jax.device_put(tree)
    where = sharding.batch_sharding(mesh) if sharded else sharding.replicated(mesh)
    # Every process has all rows and supplies those of its own devices.
    return jax.tree.map(lambda x: jax.make_array_from_callback(x.shape, where, x.__getitem__), tree)
