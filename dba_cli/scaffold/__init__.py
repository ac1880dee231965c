"""`dba plugins new`: the text of a plugin package, one template per kind, and how it is written."""
