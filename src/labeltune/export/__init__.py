"""A run into other people's runtimes, each with a certificate that it answers as the run does."""
