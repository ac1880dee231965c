"""Text generation through the model's decode path."""
