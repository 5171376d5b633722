"""The command line: `deepshap`."""
