"""attrs classes from plain data (TOML, JSON, options) and back: exact types, every error with its path."""
