import perception  # noqa: F401 - before mmcv.ops: serves mmcv._ext where it is not compiled
