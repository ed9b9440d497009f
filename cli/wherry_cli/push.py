"""`wherry push`."""


def push() -> None:
    """To come."""
