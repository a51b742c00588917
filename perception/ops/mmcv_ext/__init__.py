"""Stand-in for mmcv's compiled extension ``mmcv._ext``: the ops this project reaches, in plain torch.

Signatures, argument names and output arguments are those that ``mmcv/ops/*.py`` (2.1.0) calls with. Every other
name resolves to a function that raises ``NotImplementedError`` when it is called.
"""

from perception.ops.mmcv_ext.missing import missing_op as __getattr__

__all__: list[str] = []
