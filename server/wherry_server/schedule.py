"""The server's clockwork: what happens by itself, and how often. One place, so that it can be read."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import UTC

from apscheduler.schedulers.background import BackgroundScheduler

from wherry.errors import WherryError
from wherry_server.link import ServerLink
from wherry_server.services import assignments, compaction, reports, repository, rollouts, telemetry
from wherry_server.services.context import Context

ROLLOUT_SECONDS = 2
OUTBOX_SECONDS = 5
PRESENCE_SECONDS = 30
SIGNING_SECONDS = 600
RETENTION_SECONDS = 3600
_log = logging.getLogger(__name__)


def make_scheduler(context: Context, link: ServerLink | None) -> BackgroundScheduler:
    """All jobs, not started yet. A job that is still running is not started again."""
    scheduler = BackgroundScheduler(
        timezone=UTC, job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": None}
    )
    jobs: list[tuple[int, Callable[[], object]]] = [
        (ROLLOUT_SECONDS, lambda: rollouts.advance_all(context)),
        (SIGNING_SECONDS, lambda: repository.stamp_due(context)),
        (SIGNING_SECONDS, lambda: _sign_due(context)),
        (RETENTION_SECONDS, lambda: telemetry.forget_old(context)),
        (RETENTION_SECONDS, lambda: compaction.compact_old(context)),
    ]
    if link is not None:
        jobs.append((OUTBOX_SECONDS, link.wake))
        jobs.append((PRESENCE_SECONDS, lambda: _mark_stale(context, link)))
    for seconds, job in jobs:
        scheduler.add_job(_guarded, "interval", seconds=seconds, args=[job])
    return scheduler


def catch_up(context: Context) -> None:
    """What may be overdue when the server starts after a long time off."""
    repository.stamp_due(context)
    _sign_due(context)


def _sign_due(context: Context) -> None:
    while assignments.sign_due(context):
        pass


def _mark_stale(context: Context, link: ServerLink) -> None:
    # Without a broker everybody is silent, and that says nothing about them.
    if link.connected_seconds > context.config.presence_stale_seconds:
        reports.mark_stale(context)


def _guarded(job: Callable[[], object]) -> None:
    try:
        job()
    except WherryError as error:
        _log.warning("a scheduled job failed and is tried again later: %s", error)
    except Exception:
        _log.exception("a scheduled job met a defect")
