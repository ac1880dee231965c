"""One module per command of `dba`."""
