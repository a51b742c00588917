"""A package, so that processes which tests start find this folder and not scalabel's, which is called `tests` too."""
