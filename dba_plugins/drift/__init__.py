"""How far a cache policy drifts from an exact cache over a long text."""
