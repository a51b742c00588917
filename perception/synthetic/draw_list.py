"""The meshes of a scene as the rasteriser takes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from perception.synthetic.mesh import Mesh, join


@dataclass(frozen=True)
class DrawList:
    """All meshes of a scene in the flat form that `raster.draw_objects` takes."""

    vertices: NDArray[np.float64]
    vertex_start: NDArray[np.int64]
    triangles: NDArray[np.int32]
    triangle_start: NDArray[np.int64]
    colours: NDArray[np.float32]
    glow: NDArray[np.float32]
    shadow_start: NDArray[np.int64]
    radii: NDArray[np.float64]
    ids: NDArray[np.int32]

    @classmethod
    def of(cls, meshes: Sequence[Mesh], shadows: Sequence[Mesh | None], ids: Sequence[int]) -> DrawList:
        """Put meshes behind one another.

        Args:
            meshes: one per object, in its own frame.
            shadows: each object's shadow on the ground, in its frame; None: it casts none.
            ids: the number that each object's pixels get, 0 for background.
        """
        parts = [m if s is None else join([m, s]) for m, s in zip(meshes, shadows, strict=True)]
        everything = join(parts)
        return cls(
            everything.vertices,
            _starts([len(p.vertices) for p in parts]),
            everything.triangles,
            _starts([len(p.triangles) for p in parts]),
            everything.colours,
            everything.glow,
            np.array([len(m.triangles) for m in meshes], dtype=np.int64),
            np.array([m.radius for m in meshes]),
            np.array(ids, dtype=np.int32),
        )


def _starts(lengths: list[int]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
