"""Exit codes of every verb."""

OK = 0
RUN_FAILED = 1
USAGE = 2
DATA = 3
CHECKPOINT = 4
HUNG = 5
INTERRUPTED = 130
TERMINATED = 143

HELP = """exit codes:
  0    done
  1    the run failed
  2    wrong command line or config
  3    data missing or damaged
  4    checkpoint or export missing, damaged or not fitting
  5    a rank hung
  130  interrupted by Ctrl-C
  143  stopped by SIGTERM or SIGUSR1, after saving
"""
