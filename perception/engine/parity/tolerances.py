"""What the fixtures' README recommends for a float32 re-implementation."""

POSITIONS, CAMERA_POINTS, ENCODER, DECODER = 3e-6, 5e-6, 1e-4, 5e-5
CLASS_SCORES, CODES, SCORES, BOXES = 2e-5, 2e-4, 5e-6, 2e-4
COSTS, LOSSES, MAP_SCORES = 1e-4, 2e-5, 5e-5
GRADIENTS, GRADIENTS_WITH_MAP = 1e-4, 3e-2
"""Relative; with the map head ReLU kinks of its U-Net weigh in."""
