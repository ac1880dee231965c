"""Memory summarizers: a block of keys and values becomes one memory token."""
