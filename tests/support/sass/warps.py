"""The state of the warps that run: registers, predicates, and where each lane is."""

from __future__ import annotations

import numpy as np

LANES = 32
Mask = np.ndarray
"""(warps, 32) of bool: lanes that take part."""

HELD = 1 << 30
"""A lane's program counter while it waits or after it has left."""


class Warps:
    """``warps`` warps of blocks of ``per_block`` each; arrays have the shape (warps, 32), uniform ones (warps, 1).

    Uniform registers and predicates are those that a warp has once: instructions on them are the same arithmetic on
    arrays of one column.
    """

    def __init__(self, warps: int, per_block: int, blocks: np.ndarray) -> None:
        self.count = warps
        self.per_block = per_block
        self.registers = np.zeros((256, warps, LANES), np.uint32)
        self.uniform = np.zeros((64, warps, 1), np.uint32)
        self.predicates = np.zeros((8, warps, LANES), bool)
        self.uniform_predicates = np.zeros((8, warps, 1), bool)
        self.predicates[7] = True
        self.uniform_predicates[7] = True
        self.place = np.zeros((warps, LANES), np.int32)
        """Index of each lane's next instruction; HELD while it waits for others, and for lanes that have left."""
        self.resumes = np.zeros((warps, LANES), np.int32)
        """Index where a waiting lane goes on."""
        self.alive = np.ones((warps, LANES), bool)
        self.convergence = np.zeros((16, warps, LANES), bool)
        """Lanes that a convergence barrier waits for."""
        self.convergence_place = np.zeros((16, warps, 1), np.int32)
        """Index where they go on."""
        self.slot = np.arange(warps, dtype=np.int64)[:, None] // per_block
        """Each warp's block, counted among those that run."""
        self.number = np.arange(warps, dtype=np.int64)[:, None] % per_block
        """Each warp's number in its block."""
        self.block = np.repeat(np.asarray(blocks, np.uint32), per_block)[:, None]
        """Each warp's block, as it stands in the grid."""
        self.thread = (self.number * LANES + np.arange(LANES)).astype(np.uint32)
