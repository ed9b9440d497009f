"""`wherry package`."""


def package_model() -> None:
    """To come."""
