"""Measure this machine: decode, train, quality ...

Each command prints a table that says how it was made. All candidates of a measurement run in one process and
take turns; a row is the median with its quartiles.

\b
Examples:
  dba bench decode --threads 1,2
  dba bench model latest
  dba bench quality latest --save results --plot
"""
