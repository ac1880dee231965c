"""A run from configuration to folder: preparation, the job, its summary and plots, and how it is loaded again."""
