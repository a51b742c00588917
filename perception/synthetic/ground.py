"""The painted ground: a raster of the road, its kerbs and its markings, with a mip pyramid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from shapely.geometry import MultiPolygon, Polygon

from perception.synthetic.road import Road, line_pieces

CELL = 0.1  # metres per texel
MARGIN = 30.0  # painted ground around the road, metres
LEVELS = 6  # mip levels; the coarsest texel is CELL * 2**(LEVELS - 1)
LINE_WIDTH = 0.25
KERB_WIDTH = 0.35
RAIL_WIDTH = 0.14
_SHIFT = 4  # sub-texel bits of OpenCV's polygon drawing


@dataclass(frozen=True)
class Ground:
    """Painted ground of one scene.

    Attributes:
        texels: flat uint8, all mip levels one after another, BGR, row 0 at the smallest y.
        offsets: (LEVELS,) int64, first texel of each level in `texels`.
        shapes: (LEVELS, 2) int64 rows and columns of each level.
        origin: (x, y) of the corner of texel (0, 0), global frame, metres.
        base: (3,) float32 BGR colour of the ground outside the raster.
    """

    texels: NDArray[np.uint8]
    offsets: NDArray[np.int64]
    shapes: NDArray[np.int64]
    origin: tuple[float, float]
    base: NDArray[np.float32]


class _Canvas:
    """Draws shapes given in metres on the finest level."""

    def __init__(self, *, road: Road, colour: tuple[int, ...]) -> None:
        x0, y0, x1, y1 = road.surface.bounds
        self.origin = (float(np.floor(x0 - MARGIN)), float(np.floor(y0 - MARGIN)))
        multiple = 2 ** (LEVELS - 1)
        cols = int(np.ceil((x1 + MARGIN - self.origin[0]) / CELL / multiple)) * multiple
        rows = int(np.ceil((y1 + MARGIN - self.origin[1]) / CELL / multiple)) * multiple
        self.image = np.empty((rows, cols, len(colour)), dtype=np.uint8)
        self.image[:] = colour

    def _texels(self, xy: NDArray[np.float64]) -> NDArray[np.int32]:
        # OpenCV puts texel centres at whole numbers
        cells = (np.asarray(xy)[:, :2] - self.origin) / CELL - 0.5
        return np.asarray(np.round(cells * 2**_SHIFT), dtype=np.int32)

    def polygon(self, shape: Polygon | MultiPolygon, colour: tuple[int, ...]) -> None:
        for part in shape.geoms if isinstance(shape, MultiPolygon) else [shape]:
            rings = [self._texels(np.asarray(r.coords)) for r in (part.exterior, *part.interiors)]
            cv2.fillPoly(self.image, rings, colour, lineType=cv2.LINE_AA, shift=_SHIFT)

    def corners(self, xy: NDArray[np.float64], colour: tuple[int, int, int]) -> None:
        cv2.fillPoly(self.image, [self._texels(xy)], colour, lineType=cv2.LINE_AA, shift=_SHIFT)

    def stroke(self, xy: NDArray[np.float64], width: float, colour: tuple[int, int, int]) -> None:
        """Paint a line as one quadrilateral per piece, so that its width is exact."""
        xy = np.asarray(xy)
        d = np.diff(xy, axis=0)
        length = np.hypot(d[:, 0], d[:, 1])
        keep = length > 1e-6
        n = np.stack([-d[keep, 1], d[keep, 0]], -1) / length[keep, None] * (width / 2)
        tangent = d[keep] / length[keep, None] * 0.02  # overlap hides the joints
        a, b = xy[:-1][keep] - tangent, xy[1:][keep] + tangent
        for quad in np.stack([a + n, b + n, b - n, a - n], axis=1):
            self.corners(quad, colour)


def _grey(value: float, tint: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> tuple[int, int, int]:
    b, g, r = (int(np.clip(value * t, 0, 255)) for t in tint)
    return b, g, r


def _zebra_stripes(corners: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """Stripes of half a metre along the traffic, half a metre apart."""
    a, b, c, d = corners
    num = max(2, int(round(np.linalg.norm(b - a) / 1.0)))
    stripes = []
    for i in range(num):
        t0, t1 = (i + 0.22) / num, (i + 0.78) / num
        stripes.append(np.array([a + t0 * (b - a), a + t1 * (b - a), d + t1 * (c - d), d + t0 * (c - d)]))
    return stripes


def _mottle(rng: np.random.Generator, image: NDArray[np.uint8], strength: float) -> None:
    """Multiply by smooth random blotches plus fine grain, in place."""
    rows, cols = image.shape[:2]
    field = np.zeros((rows, cols), dtype=np.float32)
    for cell, share in ((160, 0.6), (24, 0.5), (4, 0.6)):
        coarse = rng.standard_normal((rows // cell + 2, cols // cell + 2)).astype(np.float32)
        field += share * cv2.resize(coarse, (cols, rows), interpolation=cv2.INTER_LINEAR)
    for r in range(0, rows, 256):
        part = image[r : r + 256]
        gain = 1.0 + strength * field[r : r + 256, :, None]
        part[:] = np.clip(np.rint(part * gain), 0, 255).astype(np.uint8)


def paint_ground(
    rng: np.random.Generator, road: Road, *, rails: Sequence[NDArray[np.float64]] = ()
) -> Ground:
    """Paint a road's ground and build its mip pyramid.

    Args:
        rng: source of randomness.
        road: the road.
        rails: (n, 2) lines, metres, along which a rail lies in the carriageway.
    """
    grass = (int(rng.uniform(45, 70)), int(rng.uniform(95, 130)), int(rng.uniform(70, 105)))
    asphalt = _grey(rng.uniform(62, 92), (1.03, 1.0, 0.97))
    pavement = _grey(rng.uniform(128, 150), (0.88, 0.95, 1.03))
    kerb = _grey(rng.uniform(188, 208), (0.97, 1.0, 1.0))
    white = _grey(rng.uniform(228, 245))
    yellow = (40, int(rng.uniform(175, 195)), int(rng.uniform(220, 240)))
    divider = yellow if rng.random() < 0.6 else white

    canvas = _Canvas(road=road, colour=grass)
    canvas.polygon(road.walkway.union(road.surface), pavement)
    canvas.polygon(road.surface, asphalt)
    _mottle(rng, canvas.image, 0.05)
    for ring in (road.surface.exterior, *road.surface.interiors):
        canvas.stroke(np.asarray(ring.coords), KERB_WIDTH, kerb)
    for rail in rails:
        canvas.stroke(rail, RAIL_WIDTH, _grey(38.0))
    for corners in road.crossings:
        for stripe in _zebra_stripes(corners):
            canvas.corners(stripe, white)
    for bar in road.stop_bars:
        canvas.corners(bar, white)
    for line in road.road_dividers:
        canvas.stroke(line, LINE_WIDTH, divider)
    for line in road.lane_dividers:
        for piece in line_pieces(line, dash=4.0, gap=2.5):
            canvas.stroke(piece, LINE_WIDTH, white)

    levels = [canvas.image]
    for _ in range(LEVELS - 1):
        rows, cols = levels[-1].shape[:2]
        levels.append(cv2.resize(levels[-1], (cols // 2, rows // 2), interpolation=cv2.INTER_AREA))
    shapes = np.array([lv.shape[:2] for lv in levels], dtype=np.int64)
    offsets = np.concatenate([[0], np.cumsum(shapes.prod(1))[:-1]]).astype(np.int64)
    texels = np.concatenate([lv.reshape(-1) for lv in levels])
    return Ground(texels, offsets, shapes, canvas.origin, np.asarray(grass, dtype=np.float32))


def cover_ground(road: Road) -> NDArray[np.uint8]:
    """Return (rows, columns, 2) uint8: the share of each texel of the finest level that is carriageway, and paved.

    255 is all of it. With smooth edges the outline can be found between the texels.
    """
    shapes = (road.surface, road.walkway.union(road.surface))
    covers = []
    for shape in shapes:
        canvas = _Canvas(road=road, colour=(0,))
        canvas.polygon(shape, (255,))
        covers.append(canvas.image[..., 0])
    return np.stack(covers, axis=-1)
