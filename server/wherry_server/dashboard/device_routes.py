"""The device page: `/devices/{id}`."""

from __future__ import annotations

from fastapi import APIRouter

from wherry_server.dashboard.frame import page_router


def device_routes() -> APIRouter:
    """`/devices/…`."""
    return page_router()
