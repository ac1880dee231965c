"""The command line `dba`: click commands, each imported only when it is called."""
