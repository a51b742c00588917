"""Configs: find, load, change, check, and write them down."""

from perception.config.check import check_config, config_problems
from perception.config.data_paths import fit_to_root, missing_data, with_data_root
from perception.config.errors import ConfigError
from perception.config.flatten import flatten
from perception.config.load import load_config, override_config
from perception.config.names import ConfigName, config_roots, find_config, list_configs, parse_config_name
from perception.config.serialise import config_from_json, config_hash, dump_json
from perception.config.suggest import closest, did_you_mean
from perception.config.types import ALLOWED_PREFIXES

__all__ = [
    "ALLOWED_PREFIXES",
    "ConfigError",
    "ConfigName",
    "check_config",
    "closest",
    "config_from_json",
    "config_hash",
    "config_problems",
    "config_roots",
    "did_you_mean",
    "dump_json",
    "find_config",
    "fit_to_root",
    "flatten",
    "list_configs",
    "load_config",
    "missing_data",
    "override_config",
    "parse_config_name",
    "with_data_root",
]
