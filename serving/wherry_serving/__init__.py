"""The model server inside a model container."""
