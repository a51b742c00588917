"""Multi-task driving perception: training, evaluation and export.

Importing this package imports neither torch nor any OpenMMLab package. It only makes sure that a later
``import mmcv.ops`` finds ``mmcv._ext`` (see :mod:`perception.ops.mmcv_finder`).
"""

from perception.ops.mmcv_finder import install as _install_mmcv_fallback

__version__ = "0.1.0"

_install_mmcv_fallback()
