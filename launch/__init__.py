"""How it starts: command line, placement, environment. Nothing in `rlhaiku` or `actors` imports it."""
