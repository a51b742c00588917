"""Planar curves: a road's centre line, and polylines with arc length."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Path:
    """A polyline parametrised by arc length.

    Attributes:
        xy: (n, 2) points, global frame, metres.
        s: (n,) arc length of each point, metres, increasing from 0.
        yaw: (n,) heading, radians, unwrapped.
    """

    xy: Array
    s: Array
    yaw: Array

    @classmethod
    def from_points(cls, xy: Array) -> Path:
        """Build a path through (n, 2) points, n >= 2, no two neighbours equal."""
        xy = np.asarray(xy, dtype=np.float64)
        steps = np.diff(xy, axis=0)
        s = np.concatenate([[0.0], np.cumsum(np.hypot(steps[:, 0], steps[:, 1]))])
        grad = np.gradient(xy, s, axis=0)
        return cls(xy, s, np.unwrap(np.arctan2(grad[:, 1], grad[:, 0])))

    @property
    def length(self) -> float:
        """Length in metres."""
        return float(self.s[-1])

    def at(self, s: Array | float) -> tuple[Array, Array]:
        """Return ((..., 2) positions, (...) headings) at arc lengths `s`; straight extrapolation past both ends."""
        s = np.asarray(s, dtype=np.float64)
        inside = np.clip(s, 0.0, self.length)
        yaw = np.interp(inside, self.s, self.yaw)
        xy = np.stack([np.interp(inside, self.s, self.xy[:, i]) for i in range(2)], axis=-1)
        beyond = s - inside
        return xy + beyond[..., None] * np.stack([np.cos(yaw), np.sin(yaw)], axis=-1), yaw

    def offset(self, u: Array | float) -> Path:
        """Return the path shifted `u` metres to the left (a number or one per point)."""
        normal = np.stack([-np.sin(self.yaw), np.cos(self.yaw)], axis=-1)
        return Path.from_points(
            self.xy + np.broadcast_to(np.asarray(u, dtype=np.float64), self.s.shape)[:, None] * normal
        )

    def reversed(self) -> Path:
        """Return the path run in the other direction."""
        return Path.from_points(self.xy[::-1])

    def project(self, xy: Array) -> Array:
        """Return (n, 2) of (arc length of the nearest vertex, signed distance to the left) for (n, 2) points."""
        delta = xy[:, None] - self.xy[None]
        nearest = (delta**2).sum(-1).argmin(1)
        d = delta[np.arange(len(xy)), nearest]
        yaw = self.yaw[nearest]
        return np.stack([self.s[nearest], -np.sin(yaw) * d[:, 0] + np.cos(yaw) * d[:, 1]], axis=-1)


def random_centreline(rng: np.random.Generator, *, length: float, bend: float, step: float = 0.5) -> Path:
    """Draw a road centre line that starts at the origin.

    The curvature is piecewise constant over 25 to 55 m (radius down to 38 m at `bend` = 1), smoothed so that bends
    begin gently; the heading stays within 75 degrees of the first one, so the road never crosses itself.

    Args:
        rng: source of randomness.
        length: metres.
        bend: 0 (straight) to 1 (winding): scales curvature and the share of curved pieces.
        step: distance between points, metres.
    """
    n = int(round(length / step)) + 1
    curvature = np.zeros(n)
    i, heading = 0, 0.0
    while i < n:
        k = int(rng.uniform(25.0, 55.0) / step)
        curved = rng.random() < 0.25 + 0.6 * bend
        kappa = bend * rng.uniform(1 / 160.0, 1 / 38.0) * rng.choice([-1.0, 1.0]) if curved else 0.0
        if abs(heading + kappa * k * step) > np.deg2rad(75.0):
            kappa = -kappa
            if abs(heading + kappa * k * step) > np.deg2rad(75.0):
                kappa = 0.0
        curvature[i : i + k] = kappa
        heading += kappa * k * step
        i += k
    width = int(10.0 / step)
    window = np.hanning(2 * width + 1)
    padded = np.pad(curvature, width, mode="edge")
    curvature = np.convolve(padded, window / window.sum(), mode="valid")
    yaw = rng.uniform(-np.pi, np.pi) + np.cumsum(curvature) * step
    mid = yaw[:-1] + 0.5 * np.diff(yaw)
    xy = np.concatenate(
        [np.zeros((1, 2)), np.cumsum(np.stack([np.cos(mid), np.sin(mid)], -1) * step, axis=0)]
    )
    return Path.from_points(xy)
