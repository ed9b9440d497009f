"""What people and tools read, straight from tables and paged by key: the other modules' views by one name."""

from __future__ import annotations

from wherry_server.store.device_views import DeviceFilter as DeviceFilter
from wherry_server.store.device_views import FleetCounts as FleetCounts
from wherry_server.store.device_views import device_page as device_page
from wherry_server.store.device_views import device_view as device_view
from wherry_server.store.device_views import device_views as device_views
from wherry_server.store.device_views import fleet_counts as fleet_counts
from wherry_server.store.release_views import release_page as release_page
from wherry_server.store.release_views import release_view as release_view
from wherry_server.store.rollout_views import deployment_page as deployment_page
from wherry_server.store.rollout_views import rollout_page as rollout_page
from wherry_server.store.rollout_views import rollout_view as rollout_view
from wherry_server.store.rollout_views import troubled_targets as troubled_targets
