"""What `dba` writes: `terminal` is the one way out; tables, configurations and bars take it."""
