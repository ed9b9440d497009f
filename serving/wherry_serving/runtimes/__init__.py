"""Model runtimes, one adapter each."""
