# SPDX-License-Identifier: Apache-2.0
"""Scenes with known depth, for tools/make_demo_dataset.py: boxes, balls and poles in a room, by casting rays.

Colours and textures say nothing about depth. What does is where things stand on the floor, how large their texture
appears, and what hides what; thin poles make long edges at which depth jumps.
"""

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

HEIGHT, WIDTH = 96, 128
FOCAL_LENGTH = 110.0  # pixels


@dataclass
class Surface:
    """Something that a ray can hit: where, and with which colour."""

    #: origin (3,), directions (H, W, 3) -> distance along the ray (H, W), inf where it misses, and normals (H, W, 3)
    hit: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
    #: points (M, 3) -> colours (M, 3) in [0, 1]
    color: Callable[[np.ndarray], np.ndarray]


def texture(rng):
    """A random pattern in space of two random colours: checkerboard, stripes, or waves in all directions."""
    first, second = rng.uniform(0.1, 0.9, (2, 3))
    turn, _ = np.linalg.qr(rng.standard_normal((3, 3)))
    period, kind = rng.uniform(0.15, 0.5), rng.integers(3)

    def color(points):
        place = points @ turn.T / period
        if kind == 0:
            pattern = np.floor(place).sum(1) % 2
        elif kind == 1:
            pattern = np.floor(place[:, 0]) % 2
        else:
            pattern = 0.5 + 0.5 * np.sin(2 * np.pi * place).prod(1)
        return first + pattern[:, None] * (second - first)

    return color


def plane(normal, distance):
    """Where ``<normal, point> = distance``."""

    def hit(origin, rays):
        slope = rays @ normal
        with np.errstate(divide='ignore'):
            t = (distance - origin @ normal) / slope
        return np.where(t > 0, t, np.inf), np.broadcast_to(normal, rays.shape)

    return hit


def ball(centre, radius):
    def hit(origin, rays):
        to = origin - centre
        a, b, c = (rays**2).sum(-1), rays @ to, to @ to - radius**2
        root = b**2 - a * c
        t = np.where(root > 0, (-b - np.sqrt(root.clip(0))) / a, np.inf)
        t = np.where(t > 0, t, np.inf)
        points = origin + np.where(np.isfinite(t), t, 0)[..., None] * rays
        return t, (points - centre) / radius

    return hit


def box(centre, half, turn):
    """A box of half sides ``half``, turned by ``turn`` about the vertical."""
    axes = np.array([[np.cos(turn), 0, np.sin(turn)], [0, 1, 0], [-np.sin(turn), 0, np.cos(turn)]])

    def hit(origin, rays):
        start, along = axes @ (origin - centre), rays @ axes.T
        with np.errstate(divide='ignore', invalid='ignore'):
            one, other = (-half - start) / along, (half - start) / along
        near, far = np.minimum(one, other), np.maximum(one, other)
        face, t = near.argmax(-1), near.max(-1)
        t = np.where((t > 0) & (t < far.min(-1)), t, np.inf)
        return t, axes[face] * -np.sign(np.take_along_axis(along, face[..., None], -1))

    return hit


def pole(x, z, radius):
    """An endless vertical cylinder."""

    def hit(origin, rays):
        to, along = np.array([origin[0] - x, origin[2] - z]), rays[..., [0, 2]]
        a, b, c = (along**2).sum(-1), along @ to, to @ to - radius**2
        root = b**2 - a * c
        t = np.where(root > 0, (-b - np.sqrt(root.clip(0))) / a, np.inf)
        t = np.where(t > 0, t, np.inf)
        side = (to + np.where(np.isfinite(t), t, 0)[..., None] * along) / radius
        return t, np.stack([side[..., 0], np.zeros_like(t), side[..., 1]], -1)

    return hit


def scene(rng):
    """A room with a back wall that is not quite frontal, and four to seven things on the floor.

    The axes are right, down and ahead; the camera stands at the origin, 1.2 to 1.7 m above the floor.
    """
    floor = rng.uniform(1.2, 1.7)
    turn, wall = rng.uniform(-0.35, 0.35), rng.uniform(5, 7.5)
    surfaces = [
        Surface(plane(np.array([0, -1.0, 0]), -floor), texture(rng)),
        Surface(plane(np.array([-np.sin(turn), 0, -np.cos(turn)]), -wall), texture(rng)),
    ]
    for kind in rng.permutation([0, 1, 2, 2, *rng.integers(0, 3, int(rng.integers(0, 4)))]):
        z = rng.uniform(1.5, 5.5)
        x = rng.uniform(-0.5, 0.5) * z
        if kind == 0:
            half = rng.uniform(0.15, 0.6, 3)
            hit = box(np.array([x, floor - half[1], z]), half, rng.uniform(0, np.pi))
        elif kind == 1:
            radius = rng.uniform(0.2, 0.6)
            hit = ball(np.array([x, floor - radius, z]), radius)
        else:
            hit = pole(x, z, rng.uniform(0.02, 0.08))
        surfaces.append(Surface(hit, texture(rng)))
    return surfaces


def camera_rays(pitch, roll):
    """Directions ``(H, W, 3)`` through the centres of the pixels, of length 1 along the optical axis.

    So the distance along a ray is the depth.
    """
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    x, y = (x + 0.5 - WIDTH / 2) / FOCAL_LENGTH, (y + 0.5 - HEIGHT / 2) / FOCAL_LENGTH
    rays = np.stack([x, y, np.ones_like(x)], -1)
    tilt = np.array([[1, 0, 0], [0, np.cos(pitch), np.sin(pitch)], [0, -np.sin(pitch), np.cos(pitch)]])
    lean = np.array([[np.cos(roll), -np.sin(roll), 0], [np.sin(roll), np.cos(roll), 0], [0, 0, 1]])
    return rays @ (tilt @ lean).T


def cast(surfaces, rays, light):
    """Depth ``(H, W)`` in metres and colours ``(H, W, 3)`` in [0, 1] of what each ray meets first."""
    depth = np.full(rays.shape[:2], np.inf)
    color = np.zeros(rays.shape)
    for surface in surfaces:
        t, normal = surface.hit(np.zeros(3), rays)
        seen = t < depth
        depth[seen] = t[seen]
        shade = 0.35 + 0.65 * np.clip(normal[seen] @ light, 0, 1)
        color[seen] = surface.color(t[seen][:, None] * rays[seen]) * shade[:, None]
    return depth, color


def make_depth_sample(rng):
    """Return an RGB picture ``(HEIGHT, WIDTH, 3)`` uint8 and its depth ``(HEIGHT, WIDTH)`` uint16 in millimetres.

    A depth of 0 is unknown, as a sensor leaves it: a few small discs.
    """
    surfaces = scene(rng)
    pitch, roll = rng.uniform(0, 0.3), rng.uniform(-0.05, 0.05)
    light = np.array([rng.uniform(-1, 1), -1.0, -1.0])
    light /= np.linalg.norm(light)
    depth, color = cast(surfaces, camera_rays(pitch, roll), light)
    image = cv2.GaussianBlur(color, (0, 0), 0.5) * rng.uniform(0.8, 1.2)
    image = np.clip(np.round(255 * image + rng.normal(0, 4, image.shape)), 0, 255).astype(np.uint8)
    depth = np.where(depth < 10, np.round(1000 * depth), 0).astype(np.uint16)
    for _ in range(int(rng.integers(0, 4))):
        place = rng.integers(0, WIDTH), rng.integers(0, HEIGHT)
        cv2.circle(depth, tuple(map(int, place)), int(rng.integers(2, 6)), 0, -1)
    return image, depth
