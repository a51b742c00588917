"""Synthetic worlds in nuScenes' on-disk format."""

from perception.synthetic.world import synthesize

__all__ = ["synthesize"]
