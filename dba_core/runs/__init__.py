"""A run from configuration to folder: preparation, job, summary, plots, and how it is loaded again."""
