"""The fleet page. To come."""

from fastapi import FastAPI

from wherry_server.services.context import Context


def add_dashboard(app: FastAPI, context: Context) -> None:
    """Mount the pages."""
