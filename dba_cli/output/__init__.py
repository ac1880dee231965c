"""What `dba` writes: `terminal` is the only way out, `rendering` makes tables, `progress` tells of a job."""
