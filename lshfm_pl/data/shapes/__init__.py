"""The project's own data set of synthetic shapes."""
