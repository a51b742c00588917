"""Motion in time: speed profiles, sampled trajectories and the ego vehicle's drive."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from perception.synthetic.path import Path
from perception.synthetic.road import END_MARGIN, START_MARGIN, Road

Array = NDArray[np.float64]

TICK = 0.05  # seconds between the stored poses of a trajectory
LEAD_IN = (
    0.3  # trajectories begin this long before the first sample and end this long after the last, seconds
)


def time_grid(duration: float) -> Array:
    """Return the times (n,) at which all trajectories of a scene of `duration` seconds are stored."""
    return np.asarray(np.arange(-LEAD_IN, duration + LEAD_IN + TICK / 2, TICK))


@dataclass(frozen=True)
class Trajectory:
    """Poses over the scene's time grid.

    Attributes:
        times: (n,) seconds since the first sample.
        xy: (n, 2) metres, global frame.
        yaw: (n,) radians, unwrapped.
        active: (n,) whether the object is in the scene at that time.
    """

    times: Array
    xy: Array
    yaw: Array
    active: NDArray[np.bool_]

    def at(self, t: float) -> tuple[float, float, float]:
        """Return (x, y, yaw) at time `t`, interpolated."""
        f = min(max((t - float(self.times[0])) / TICK, 0.0), len(self.times) - 1.000001)
        i = int(f)
        f -= i
        a, b = self.xy[i], self.xy[i + 1]
        yaw = self.yaw[i]
        return (
            float(a[0] + f * (b[0] - a[0])),
            float(a[1] + f * (b[1] - a[1])),
            float(yaw + f * (self.yaw[i + 1] - yaw)),
        )

    def is_active(self, t: float) -> bool:
        """Whether the object is in the scene at time `t`."""
        return bool(self.active[min(max(round((t - float(self.times[0])) / TICK), 0), len(self.times) - 1)])

    def speed(self, t: float) -> float:
        """Return the speed at time `t`, m/s."""
        a, b = self.at(t - TICK), self.at(t + TICK)
        return float(np.hypot(b[0] - a[0], b[1] - a[1]) / (2 * TICK))


def standing(times: Array, xy: Array, yaw: float) -> Trajectory:
    """Return the trajectory of something that does not move."""
    n = len(times)
    return Trajectory(times, np.tile(xy, (n, 1)), np.full(n, yaw), np.ones(n, dtype=bool))


def along(times: Array, path: Path, s: Array, *, margin: float = 1.0) -> Trajectory:
    """Return the trajectory of something at arc lengths `s` (n,) of a path; inactive beyond the path's ends."""
    xy, yaw = path.at(s)
    return Trajectory(times, xy, yaw, (s >= margin) & (s <= path.length - margin))


def travelled(times: Array, speed: Array) -> Array:
    """Integrate a speed profile; the distance is 0 at time 0."""
    s = np.concatenate([[0.0], np.cumsum(0.5 * (speed[1:] + speed[:-1]) * np.diff(times))])
    return np.asarray(s - np.interp(0.0, times, s))


def draw_ego_speed(rng: np.random.Generator, times: Array, *, stops: bool) -> Array:
    """Draw the ego vehicle's speed (n,) m/s: 3.5 to 7.5 m/s, slowly changing, with a halt if it `stops`."""
    base = rng.uniform(3.5, 7.5)
    speed = base * (
        1.0 + 0.15 * np.sin(2 * np.pi * times / rng.uniform(8.0, 16.0) + rng.uniform(0, 2 * np.pi))
    )
    if stops:
        middle, half, ramp = rng.uniform(0.25, 0.7) * times[-1], rng.uniform(1.0, 2.2), 2.5
        speed = speed * np.clip((np.abs(times - middle) - half) / ramp, 0.0, 1.0)
    return np.asarray(speed)


def drive_ego(rng: np.random.Generator, road: Road, times: Array, speed: Array) -> Trajectory:
    """Drive along a lane of the own direction, swaying by up to 0.6 m; with two lanes a change of lane may occur."""
    centre = road.centre
    lane = int(rng.integers(road.lanes[0]))
    u = np.full(centre.s.shape, -(lane + 0.5) * road.lane_width)
    if road.lanes[0] > 1 and rng.random() < 0.6:
        travel = centre.length - START_MARGIN - END_MARGIN
        change = START_MARGIN + rng.uniform(0.3, 0.7) * travel
        other = -((1 - lane) + 0.5) * road.lane_width
        x = np.clip((centre.s - change) / 28.0 + 0.5, 0.0, 1.0)
        u = u + (other - u) * (3 * x**2 - 2 * x**3)
    wave = rng.uniform(28.0, 60.0)
    u = (
        u
        + rng.uniform(-0.25, 0.25)
        + rng.uniform(0.15, 0.4) * np.sin(2 * np.pi * centre.s / wave + rng.uniform(0, 2 * np.pi))
    )
    lane_path = centre.offset(u)
    start = float(np.interp(START_MARGIN, centre.s, lane_path.s))
    return along(times, lane_path, start + travelled(times, speed))
