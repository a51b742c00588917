"""Loggers of this project: one name space, so that one switch sets them all."""

import logging


def get_logger(name: str) -> logging.Logger:
    """The logger `perception.<name>`; `name` may already begin with `perception`."""
    return logging.getLogger(name if name.split(".")[0] == "perception" else f"perception.{name}")
