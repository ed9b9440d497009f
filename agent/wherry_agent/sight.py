"""What the control loop sees of the world: containers and memory each time, the packet filter now and then."""

from __future__ import annotations

from datetime import datetime, timedelta

from wherry.errors import WherryError
from wherry_agent.observed import Observed
from wherry_agent.outbox import Outbox
from wherry_agent.world import World


class Sight:
    """Only the control loop's thread looks.

    Args:
        world: what there is to see.
        outbox: is told what cannot be seen.
        route_seconds: how often the packet filter is read back when nothing happens.

    Attributes:
        observed: what was seen last; containers are unknown while the engine does not answer.
        blind: the engine did not answer when it was last looked at; after a boot it soon does.
    """

    def __init__(self, world: World, outbox: Outbox, route_seconds: float) -> None:
        self._world = world
        self._outbox = outbox
        self._every = timedelta(seconds=route_seconds)
        self._routes_read: datetime | None = None
        self.observed = Observed()
        self.blind = False

    def look(self, now: datetime, fresh: bool) -> bool:
        """Look at the engine, and, if that is `fresh` or due, at the packet filter; False when the engine hides."""
        read, world = self._routes_read, self._world
        routes, lock = self.observed.routes, world.lock.read(now)
        try:
            containers = world.engine.observe()
        except WherryError as error:
            self.blind = True
            self._outbox.trouble("engine", error)
            memory = self.observed.memory_available_mb
            self.observed = Observed({}, routes, memory, lock, world.own_version())
            return False
        self.blind = False
        self._outbox.clear("engine")
        if fresh or read is None or abs(now - read) > self._every:
            try:
                routes, self._routes_read = world.route.read(), now
                self._outbox.clear("route")
            except WherryError as error:
                self._outbox.trouble("route", error)
        memory, ways = world.host.memory_available_mb(), world.route.ways()
        self.observed = Observed(containers, routes, memory, lock, world.own_version(), ways=ways)
        return True
