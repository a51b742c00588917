"""A world in BDD100K's format: single pictures of a front camera with 2D boxes or with segmentation masks."""

from perception.synthetic.bdd100k.world import synthesize_bdd100k

__all__ = ["synthesize_bdd100k"]
