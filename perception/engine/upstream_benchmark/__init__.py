"""The speed of our encoder and decoder beside the official modules, and beside a plain rebatching loop."""

from perception.engine.upstream_benchmark.benchmark import REMEDY, run_upstream_benchmark
from perception.engine.upstream_benchmark.table import upstream_table

__all__ = ["REMEDY", "run_upstream_benchmark", "upstream_table"]
