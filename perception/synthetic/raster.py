"""Compiled kernels: z-buffered triangles, filtered ground and sky.

Legend: V vertices, T triangles, O objects, H x W pixels. Pixel (column i, row j) has its centre at (i + 0.5, j + 0.5),
so that scaling an image scales its projection matrix by the same factor. Depth is stored as its inverse (0 = empty).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from perception.utils.jit import kernel

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]
U8 = NDArray[np.uint8]

NEAR = 0.25  # metres; triangles are clipped there
MAX_GROUND = 400.0  # metres; the ground beyond is drawn as haze


@kernel
def fill_triangle(
    p: F64, rgb: F64, oid: int, inverse: F32, colour: F32, ids: I32, stamp: I32, totals: I64
) -> None:
    """Draw one triangle.

    p: (3, 3) rows of (u, v, 1 / depth). rgb: (3,) BGR. oid: 0 for background, -1 for a ground shadow (which only writes
    -1 into `ids` where nothing is drawn), otherwise the object's number. inverse, ids, stamp: (H, W). colour:
    (H, W, 3). totals: pixels covered by each object, hidden or not; `stamp` remembers the last object counted at each
    pixel, so the triangles of one object must come one after another.
    """
    height, width = inverse.shape
    area = (p[1, 0] - p[0, 0]) * (p[2, 1] - p[0, 1]) - (p[2, 0] - p[0, 0]) * (p[1, 1] - p[0, 1])
    if abs(area) < 1e-9:
        return
    u0, v0, w0 = p[0, 0], p[0, 1], p[0, 2]
    if area > 0:
        u1, v1, w1, u2, v2, w2 = p[1, 0], p[1, 1], p[1, 2], p[2, 0], p[2, 1], p[2, 2]
    else:
        area = -area
        u1, v1, w1, u2, v2, w2 = p[2, 0], p[2, 1], p[2, 2], p[1, 0], p[1, 1], p[1, 2]
    low_u = max(0.0, np.ceil(min(u0, u1, u2) - 0.5))
    high_u = min(width - 1.0, np.floor(max(u0, u1, u2) - 0.5))
    low_v = max(0.0, np.ceil(min(v0, v1, v2) - 0.5))
    high_v = min(height - 1.0, np.floor(max(v0, v1, v2) - 0.5))
    if low_u > high_u or low_v > high_v:
        return
    scale = 1.0 / area
    a0, b0 = -(v2 - v1), u2 - u1
    a1, b1 = -(v0 - v2), u0 - u2
    a2, b2 = -(v1 - v0), u1 - u0
    for j in range(int(low_v), int(high_v) + 1):
        y = j + 0.5
        x = low_u + 0.5
        e0 = a0 * (x - u1) + b0 * (y - v1)
        e1 = a1 * (x - u2) + b1 * (y - v2)
        e2 = a2 * (x - u0) + b2 * (y - v0)
        for i in range(int(low_u), int(high_u) + 1):
            if e0 >= 0.0 and e1 >= 0.0 and e2 >= 0.0:
                if oid < 0:
                    if ids[j, i] == 0 and inverse[j, i] == 0.0:
                        ids[j, i] = -1
                else:
                    if oid > 0 and stamp[j, i] != oid:
                        stamp[j, i] = oid
                        totals[oid] += 1
                    w = (e0 * w0 + e1 * w1 + e2 * w2) * scale
                    if w > inverse[j, i]:
                        inverse[j, i] = w
                        ids[j, i] = oid
                        colour[j, i, 0] = rgb[0]
                        colour[j, i, 1] = rgb[1]
                        colour[j, i, 2] = rgb[2]
            e0 += a0
            e1 += a1
            e2 += a2


@kernel
def clip_and_fill(
    cam: F64, intrinsic: F64, rgb: F64, oid: int, inverse: F32, colour: F32, ids: I32, stamp: I32, totals: I64
) -> None:
    """Clip one triangle at the near plane, project it and draw the one or two that remain. cam: (3, 3) camera frame."""
    poly = np.empty((4, 3))
    n = 0
    for k in range(3):
        m = (k + 1) % 3
        zk, zm = cam[k, 2], cam[m, 2]
        if zk >= NEAR:
            for c in range(3):
                poly[n, c] = cam[k, c]
            n += 1
        if (zk >= NEAR) != (zm >= NEAR):
            t = (NEAR - zk) / (zm - zk)
            for c in range(3):
                poly[n, c] = cam[k, c] + t * (cam[m, c] - cam[k, c])
            n += 1
    if n < 3:
        return
    for k in range(n):
        w = 1.0 / poly[k, 2]
        poly[k, 0] = intrinsic[0] * poly[k, 0] * w + intrinsic[1]
        poly[k, 1] = intrinsic[0] * poly[k, 1] * w + intrinsic[2]
        poly[k, 2] = w
    tri = np.empty((3, 3))
    for k in range(1, n - 1):
        tri[0], tri[1], tri[2] = poly[0], poly[k], poly[k + 1]
        fill_triangle(tri, rgb, oid, inverse, colour, ids, stamp, totals)


@kernel
def draw_objects(
    vertices: F64,
    vertex_start: I64,
    triangles: I32,
    triangle_start: I64,
    colours: F32,
    glow: F32,
    shadow_start: I64,
    poses: F64,
    radii: F64,
    ids_of: I32,
    order: I64,
    rotation: F64,
    position: F64,
    intrinsic: F64,
    sun: F32,
    ambient: F32,
    diffuse: F32,
    inverse: F32,
    colour: F32,
    ids: I32,
    stamp: I32,
    totals: I64,
) -> None:
    """Draw objects.

    vertices: (V, 3) object frame. vertex_start, triangle_start: (O + 1,) first index of each object. triangles: (T, 3)
    indices into `vertices`. colours: (T, 3) BGR. glow: (T,) 1 where a face shines by itself. shadow_start: (O,) first
    triangle, within the object, of its ground shadow. poses: (O, 4) x, y, z, yaw in the global frame. radii: (O,)
    bounding radius. ids_of: (O,) number written to `ids`, 0 for background. order: object indices to draw.
    rotation: (3, 3) global to camera; position: (3,) camera in the global frame; intrinsic: (focal, cx, cy).
    """
    height, width = inverse.shape
    tan_u = max(intrinsic[1], width - intrinsic[1]) / intrinsic[0]
    cam = np.empty((3, 3))
    world = np.empty((3, 3))
    rgb = np.empty(3)
    for o in order:
        dx, dy, dz = poses[o, 0] - position[0], poses[o, 1] - position[1], poses[o, 2] - position[2]
        zc = rotation[2, 0] * dx + rotation[2, 1] * dy + rotation[2, 2] * dz
        xc = rotation[0, 0] * dx + rotation[0, 1] * dy + rotation[0, 2] * dz
        r = radii[o]
        if zc < -r or abs(xc) - zc * tan_u > r * np.sqrt(1.0 + tan_u * tan_u):
            continue
        cos, sin = np.cos(poses[o, 3]), np.sin(poses[o, 3])
        v0 = vertex_start[o]
        placed = np.empty((vertex_start[o + 1] - v0, 3))
        for k in range(placed.shape[0]):
            x, y, z = vertices[v0 + k, 0], vertices[v0 + k, 1], vertices[v0 + k, 2]
            placed[k, 0] = poses[o, 0] + cos * x - sin * y
            placed[k, 1] = poses[o, 1] + sin * x + cos * y
            placed[k, 2] = poses[o, 2] + z
        for t in range(triangle_start[o], triangle_start[o + 1]):
            is_shadow = t - triangle_start[o] >= shadow_start[o]
            ahead = False
            for k in range(3):
                for c in range(3):
                    world[k, c] = placed[triangles[t, k] - v0, c]
                for c in range(3):
                    cam[k, c] = (
                        rotation[c, 0] * (world[k, 0] - position[0])
                        + rotation[c, 1] * (world[k, 1] - position[1])
                        + rotation[c, 2] * (world[k, 2] - position[2])
                    )
                ahead = ahead or cam[k, 2] > NEAR
            if not ahead:
                continue
            if is_shadow:
                clip_and_fill(cam, intrinsic, rgb, -1, inverse, colour, ids, stamp, totals)
                continue
            e1, e2 = world[1] - world[0], world[2] - world[0]
            nx = e1[1] * e2[2] - e1[2] * e2[1]
            ny = e1[2] * e2[0] - e1[0] * e2[2]
            nz = e1[0] * e2[1] - e1[1] * e2[0]
            norm = np.sqrt(nx * nx + ny * ny + nz * nz) + 1e-12
            to_camera = (
                nx * (position[0] - world[0, 0])
                + ny * (position[1] - world[0, 1])
                + nz * (position[2] - world[0, 2])
            )
            sign = 1.0 if to_camera > 0 else -1.0  # every face is seen from outside
            lambert = max(0.0, sign * (nx * sun[0] + ny * sun[1] + nz * sun[2]) / norm)
            hemisphere = 0.9 + 0.1 * sign * nz / norm
            for c in range(3):
                light = ambient[c] * hemisphere + diffuse[c] * lambert
                rgb[c] = colours[t, c] * (glow[t] + (1.0 - glow[t]) * light)
            clip_and_fill(cam, intrinsic, rgb, ids_of[o], inverse, colour, ids, stamp, totals)


@kernel
def shade(
    texels: U8,
    offsets: I64,
    shapes: I64,
    origin: F64,
    cell: float,
    base: F32,
    camera2world: F64,
    position: F64,
    intrinsic: F64,
    ambient: F32,
    diffuse: F32,
    sun: F32,
    sky_low: F32,
    sky_high: F32,
    haze_distance: float,
    shadow: float,
    noise: float,
    seed: int,
    inverse: F32,
    colour: F32,
    ids: I32,
    image: U8,
) -> None:
    """Fill the empty pixels with ground and sky, add haze and noise, and write the 8-bit picture.

    The ground is sampled along the direction of view: the mip level follows the narrow side of a pixel's footprint, up
    to six samples its long side, so that lines stay sharp across and do not flicker along the view.
    """
    height, width = inverse.shape
    levels = offsets.shape[0]
    clear_of = np.exp(-np.arange(0.0, MAX_GROUND + 2.0) / haze_distance)  # per metre; linear in between
    acc = np.empty(3)
    rgb = np.empty(3)
    state = np.uint64(seed) * np.uint64(2862933555777941757) + np.uint64(3037000493)
    for j in range(height):
        for i in range(width):
            a = (i + 0.5 - intrinsic[1]) / intrinsic[0]
            b = (j + 0.5 - intrinsic[2]) / intrinsic[0]
            dx = camera2world[0, 0] * a + camera2world[0, 1] * b + camera2world[0, 2]
            dy = camera2world[1, 0] * a + camera2world[1, 1] * b + camera2world[1, 2]
            dz = camera2world[2, 0] * a + camera2world[2, 1] * b + camera2world[2, 2]
            stretch = np.sqrt(dx * dx + dy * dy + dz * dz)
            distance = -1.0
            if inverse[j, i] > 0.0:
                distance = stretch / inverse[j, i]
                for c in range(3):
                    rgb[c] = colour[j, i, c]
            elif dz < -1e-6 and -position[2] / dz < MAX_GROUND:
                depth = -position[2] / dz
                distance = depth * stretch
                flat = np.sqrt(dx * dx + dy * dy)
                narrow = depth / intrinsic[0]
                long = narrow * stretch / -dz
                target = max(narrow, long * 0.11)
                level = 0
                size = cell
                while level < levels - 1 and size * 1.41 < target:
                    level += 1
                    size *= 2.0
                num = int(min(6.0, max(1.0, np.ceil(long / (1.5 * size)))))
                acc[0] = acc[1] = acc[2] = 0.0
                # texel coordinates of the first sample and the step to the next
                per_texel = 1.0 / size
                pace = long * per_texel / (num * max(flat, 1e-6))
                gx = (position[0] + depth * dx - origin[0]) * per_texel - 0.5 - 0.5 * (num - 1) * pace * dx
                gy = (position[1] + depth * dy - origin[1]) * per_texel - 0.5 - 0.5 * (num - 1) * pace * dy
                last_col, last_row = shapes[level, 1] - 1, shapes[level, 0] - 1
                stride = shapes[level, 1] * 3
                found = 0
                for _ in range(num):
                    if gx >= 0.0 and gy >= 0.0 and gx < last_col and gy < last_row:
                        col, row = int(gx), int(gy)
                        fx, fy = gx - col, gy - row
                        w00, w10 = (1.0 - fx) * (1.0 - fy), fx * (1.0 - fy)
                        w01, w11 = (1.0 - fx) * fy, fx * fy
                        at = offsets[level] * 3 + row * stride + col * 3
                        for c in range(3):
                            acc[c] += (
                                w00 * texels[at + c]
                                + w10 * texels[at + 3 + c]
                                + w01 * texels[at + stride + c]
                                + w11 * texels[at + stride + 3 + c]
                            )
                        found += 1
                    gx += pace * dx
                    gy += pace * dy
                dark = shadow if ids[j, i] == -1 else 1.0
                for c in range(3):
                    value = (acc[c] + (num - found) * base[c]) / num
                    rgb[c] = value * dark * (ambient[c] + diffuse[c] * max(0.0, sun[2]))
            if distance >= 0.0:
                whole = int(min(distance, MAX_GROUND))
                clear = clear_of[whole] + (clear_of[whole + 1] - clear_of[whole]) * min(distance - whole, 1.0)
                for c in range(3):
                    rgb[c] = rgb[c] * clear + sky_low[c] * (1.0 - clear)
            else:
                up = min(1.0, max(0.0, dz / stretch * 2.0))
                for c in range(3):
                    rgb[c] = sky_low[c] + (sky_high[c] - sky_low[c]) * up
            # a sum of two uniform numbers: triangular noise from a 64-bit linear congruential generator
            state = state * np.uint64(6364136223846793005) + np.uint64(1442695040888963407)
            bits = state >> np.uint64(16)
            for c in range(3):
                n = np.int64(bits & np.uint64(255)) + np.int64((bits >> np.uint64(8)) & np.uint64(255))
                bits >>= np.uint64(16)
                value = rgb[c] + noise * (n - 255) * (1.0 / 104.5)
                image[j, i, c] = np.uint8(min(255.0, max(0.0, value + 0.5)))


@kernel
def count_ids(ids: I32, counts: I64) -> None:
    """Add the number of pixels of each positive id to `counts`."""
    for j in range(ids.shape[0]):
        for i in range(ids.shape[1]):
            if ids[j, i] > 0:
                counts[ids[j, i]] += 1


def new_buffers(height: int, width: int) -> tuple[NDArray, NDArray, NDArray, NDArray]:
    """Return empty inverse depth (H, W), colour (H, W, 3), ids (H, W) and stamp (H, W) planes."""
    return (
        np.zeros((height, width), dtype=np.float32),
        np.zeros((height, width, 3), dtype=np.float32),
        np.zeros((height, width), dtype=np.int32),
        np.zeros((height, width), dtype=np.int32),
    )
