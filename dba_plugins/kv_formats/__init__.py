"""Cache formats: what a cached key or value is stored as. `plugins` says what each is, without torch."""
