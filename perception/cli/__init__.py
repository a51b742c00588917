"""The command ``perception``: one file per verb, argument parsing and exit codes only."""
