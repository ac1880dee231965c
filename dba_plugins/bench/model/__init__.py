"""The command `dba bench model`: a whole model beside what else could run it."""
