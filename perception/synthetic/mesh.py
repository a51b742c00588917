"""Triangle meshes and the solid shapes that objects are put together from.

Object frame: x forward, y left, z up, metres, origin in the middle of the bottom. Colours are BGR, 0 to 255.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Colour = tuple[float, float, float]

_BOX_FACES = np.array(
    [
        [0, 1, 2],
        [0, 2, 3],
        [4, 6, 5],
        [4, 7, 6],
        [0, 4, 5],
        [0, 5, 1],
        [1, 5, 6],
        [1, 6, 2],
        [2, 6, 7],
        [2, 7, 3],
        [3, 7, 4],
        [3, 4, 0],
    ],
    dtype=np.int32,
)


@dataclass(frozen=True)
class Mesh:
    """Triangles with one colour each.

    Attributes:
        vertices: (V, 3) float64.
        triangles: (T, 3) int32 indices.
        colours: (T, 3) float32 BGR.
        glow: (T,) float32, 1 where a face shines by itself.
    """

    vertices: NDArray[np.float64]
    triangles: NDArray[np.int32]
    colours: NDArray[np.float32]
    glow: NDArray[np.float32]

    @property
    def radius(self) -> float:
        """Radius of the bounding sphere around the origin, metres."""
        return float(np.linalg.norm(self.vertices, axis=1).max())


def _mesh(
    vertices: NDArray | Sequence, triangles: NDArray | Sequence, colour: Colour, glow: float = 0.0
) -> Mesh:
    triangles = np.asarray(triangles, dtype=np.int32)
    n = len(triangles)
    return Mesh(
        np.asarray(vertices, dtype=np.float64),
        triangles,
        np.tile(np.asarray(colour, dtype=np.float32), (n, 1)),
        np.full(n, glow, dtype=np.float32),
    )


def join(parts: Sequence[Mesh]) -> Mesh:
    """Put several meshes into one."""
    shifts = np.cumsum([0] + [len(p.vertices) for p in parts[:-1]])
    return Mesh(
        np.concatenate([p.vertices for p in parts]),
        np.concatenate([p.triangles + np.int32(s) for p, s in zip(parts, shifts, strict=True)]),
        np.concatenate([p.colours for p in parts]),
        np.concatenate([p.glow for p in parts]),
    )


def split(mesh: Mesh, num_last: int) -> tuple[Mesh, Mesh]:
    """Take a mesh apart: all but its last `num_last` triangles, and these."""
    cut = len(mesh.triangles) - num_last
    first, last = (
        Mesh(mesh.vertices, mesh.triangles[part], mesh.colours[part], mesh.glow[part])
        for part in (slice(None, cut), slice(cut, None))
    )
    return first, last


def box(
    x: tuple[float, float],
    y: tuple[float, float],
    z: tuple[float, float],
    colour: Colour,
    *,
    rear: float = 0.0,
    front: float = 0.0,
    sides: float = 0.0,
    glow: float = 0.0,
) -> Mesh:
    """A box whose top is drawn in by `rear`, `front` and `sides` metres."""
    (x0, x1), (y0, y1), (z0, z1) = x, y, z
    bottom = [(x0, y0, z0), (x1, y0, z0), (x1, y1, z0), (x0, y1, z0)]
    top = [
        (x0 + rear, y0 + sides, z1),
        (x1 - front, y0 + sides, z1),
        (x1 - front, y1 - sides, z1),
        (x0 + rear, y1 - sides, z1),
    ]
    return _mesh(bottom + top, _BOX_FACES, colour, glow)


def cylinder(
    centre: tuple[float, float, float],
    radius: float,
    half: float,
    colour: Colour,
    *,
    axis: int = 1,
    sides: int = 8,
    top: float = 1.0,
) -> Mesh:
    """A cylinder along `axis` (1 = y, 2 = z), `half` metres either way; the upper end's radius is `top` times."""
    angle = np.arange(sides) * (2 * np.pi / sides) + np.pi / sides
    ring = np.stack([np.cos(angle), np.sin(angle)], -1) * radius
    other = [i for i in range(3) if i != axis]
    vertices = np.zeros((2 * sides, 3))
    for end, (shift, scale) in enumerate(((-half, 1.0), (half, top))):
        part = vertices[end * sides : (end + 1) * sides]
        part[:, other] = ring * scale
        part[:, axis] = shift
    faces = []
    for i in range(sides):
        j = (i + 1) % sides
        faces += [(i, j, sides + j), (i, sides + j, sides + i)]
    for i in range(1, sides - 1):
        faces += [(0, i, i + 1), (sides, sides + i, sides + i + 1)]
    return _mesh(vertices + np.asarray(centre), faces, colour)


def beam(
    start: tuple[float, float, float], end: tuple[float, float, float], thickness: float, colour: Colour
) -> Mesh:
    """A square bar between two points."""
    a, b = np.asarray(start), np.asarray(end)
    d = (b - a) / max(float(np.linalg.norm(b - a)), 1e-9)
    # Across the bar: its direction × the y axis (or the x axis, if it runs along y), then × that.
    p = np.array([-d[2], 0.0, d[0]]) if abs(d[1]) < 0.9 else np.array([0.0, d[2], -d[1]])
    p *= thickness / 2 / np.linalg.norm(p)
    q = np.array([d[1] * p[2] - d[2] * p[1], d[2] * p[0] - d[0] * p[2], d[0] * p[1] - d[1] * p[0]])
    ring = np.array([p + q, p - q, -p - q, -p + q])
    return _mesh(np.concatenate([a + ring, b + ring]), _BOX_FACES, colour)


def panel(
    x: float, y: tuple[float, float], z: tuple[float, float], colour: Colour, *, glow: float = 0.0
) -> Mesh:
    """An upright rectangle across the object at `x`."""
    (y0, y1), (z0, z1) = y, z
    return _mesh([(x, y0, z0), (x, y1, z0), (x, y1, z1), (x, y0, z1)], [(0, 1, 2), (0, 2, 3)], colour, glow)


def disc(
    x: float,
    centre: tuple[float, float],
    radius: float,
    colour: Colour,
    *,
    sides: int = 16,
    glow: float = 0.0,
) -> Mesh:
    """An upright regular polygon across the object at `x`; centre: (y, z). Even numbers of sides have flat tops."""
    angle = np.pi / 2 + (2 * np.arange(sides) + 1 - sides % 2) * (np.pi / sides)
    ring = np.stack(
        [np.full(sides, x), centre[0] + radius * np.cos(angle), centre[1] + radius * np.sin(angle)], axis=-1
    )
    return _mesh(ring, [(0, i, i + 1) for i in range(1, sides - 1)], colour, glow)


def side_panels(
    x: tuple[float, float], y: float, z: tuple[float, float], colour: Colour, *, glow: float = 0.0
) -> Mesh:
    """Two upright rectangles along the object at +y and -y."""
    (x0, x1), (z0, z1) = x, z
    parts = [
        _mesh([(x0, s, z0), (x1, s, z0), (x1, s, z1), (x0, s, z1)], [(0, 1, 2), (0, 2, 3)], colour, glow)
        for s in (y, -y)
    ]
    return join(parts)


def ground_shadow(length: float, width: float, lift: float) -> Mesh:
    """A rectangle on the ground, `lift` metres below the object's origin, slightly larger than the object."""
    x, y = length / 2 + 0.12, width / 2 + 0.12
    return _mesh(
        [(-x, -y, -lift), (x, -y, -lift), (x, y, -lift), (-x, y, -lift)], [(0, 1, 2), (0, 2, 3)], (0, 0, 0)
    )
