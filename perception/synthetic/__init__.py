"""Synthetic worlds in the on-disk formats of nuScenes and BDD100K."""

from perception.synthetic.bdd100k import synthesize_bdd100k
from perception.synthetic.world import synthesize

__all__ = ["synthesize", "synthesize_bdd100k"]
