"""One file for each run: `get_config` says what is run, the docstring with which command and result."""
