"""A checkpoint of the system that this library succeeds."""
