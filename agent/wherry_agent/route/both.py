"""Both ways together: for each slot the one that its image needs.

A redirect of the kernel comes before haproxy in a packet's path, so a slot is led by the kernel if it has one. Where
haproxy knows a slot, it is turned along with it: who reached haproxy while callers waited stays there.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

from wherry.errors import RouteError
from wherry_agent.assignment import TrustedImage
from wherry_agent.observed import Target, Way
from wherry_agent.route.chooser import Choice, Setting, choose, speaks_http
from wherry_agent.route.haproxy import HaproxyRoute
from wherry_agent.route.kernel import KernelRoute

_log = logging.getLogger(__name__)
_LOOK_SECONDS = 0.05


class BothRoutes:
    """Implements `ports.Route`.

    Args:
        kernel, haproxy: the two ways.
        setting: which to prefer.
        lacks_haproxy: why haproxy cannot be used now; empty when it can.
        holds: whether callers may wait while versions change.
    """

    def __init__(
        self,
        kernel: KernelRoute,
        haproxy: HaproxyRoute,
        setting: Setting,
        lacks_haproxy: Callable[[], str],
        holds: bool = True,
    ) -> None:
        self._kernel = kernel
        self._haproxy = haproxy
        self._setting: Setting = setting
        self._lacks_haproxy = lacks_haproxy
        self._holds = holds
        self._ways: dict[int, Way] = {}
        self._said: dict[int, Choice] = {}

    def read(self) -> Mapping[int, int]:
        """Stable port to the port that callers reach by it now."""
        kernel, haproxy = self._kernel.read(), self._haproxy.read()
        self._ways = {**dict.fromkeys(haproxy, "haproxy"), **dict.fromkeys(kernel, "kernel")}
        return {**haproxy, **kernel}

    def ways(self) -> Mapping[int, Way]:
        """By which way each port was led when it was last read."""
        return self._ways

    def turn(self, targets: Mapping[int, Target]) -> None:
        """Turn ports by the ways that their images need: those of the kernel in one transaction."""
        lacks = self._lacks_haproxy()
        choices = {stable: choose(target.image.image, self._setting, lacks) for stable, target in targets.items()}
        proxied = {stable: targets[stable].port for stable, choice in choices.items() if choice.way == "haproxy"}
        if proxied:
            try:
                self._haproxy.apply({**self._haproxy.written(), **proxied})
            except RouteError as error:  # what serves by the poorer way serves
                choices |= dict.fromkeys(proxied, Choice("kernel", f"haproxy failed ({error})", poor=True))
                proxied = {}
        self._follow({stable: target.port for stable, target in targets.items() if stable not in proxied})
        routes = dict(self._kernel.read())
        turned = {stable: port for stable, port in routes.items() if stable not in proxied}
        turned |= {stable: target.port for stable, target in targets.items() if stable not in proxied}
        if turned != routes:
            self._kernel.apply(turned)
        for stable, choice in choices.items():
            self._say(stable, choice)

    def hold(self, stable: int, image: TrustedImage) -> bool:
        """Let callers wait until the port is turned again; False, and nothing changed, where they cannot."""
        why = self._lacks_haproxy() or ("" if speaks_http(image.image) else "does not know what they speak")
        if not self._holds or why:
            _log.warning("port %d: callers do not wait: %s", stable, f"haproxy {why}" if why else "hold_seconds is 0")
            return False
        try:
            self._haproxy.apply({**self._haproxy.written(), stable: None})
            self._leave_kernel([stable])
        except RouteError as error:
            _log.warning("port %d: callers do not wait: %s", stable, error)
            return False
        _log.info("port %d: callers wait", stable)
        return True

    def held(self, stable: int) -> bool:
        """Whether callers wait."""
        return self._haproxy.written().get(stable, 0) is None and stable not in self._kernel.read()

    def drain(self, port: int, seconds: float) -> None:
        """Return when haproxy waits for no answer from a port, or after so many seconds."""
        deadline = time.monotonic() + seconds
        try:
            while self._haproxy.under_way(port) and time.monotonic() < deadline:
                time.sleep(_LOOK_SECONDS)
        except RouteError as error:
            _log.warning("what is under way to port %d is not known: %s", port, error)

    def drop(self, stable: Collection[int]) -> None:
        """Lead these ports nowhere."""
        self._leave_kernel(stable)
        written = self._haproxy.written()
        if written.keys() & set(stable):
            self._haproxy.apply({known: port for known, port in written.items() if known not in stable})

    def statistics(self, port: int, model: str) -> Any:
        """A model's statistics document by what haproxy let by; None where haproxy does not stand before the port."""
        try:
            found = self._haproxy.answers(port)
        except RouteError as error:
            _log.info("haproxy's counters: %s", error)
            return None
        return found.document(model) if found else None

    def clear(self) -> None:
        """Remove both."""
        self._kernel.clear()
        self._haproxy.clear()

    def _follow(self, turned: Mapping[int, int]) -> None:
        """Who came to haproxy while callers waited is led to the same image."""
        written = self._haproxy.written()
        known = {stable: port for stable, port in turned.items() if stable in written}
        if known:
            try:
                self._haproxy.apply({**written, **known}, start=False)
            except RouteError as error:  # new callers do not come by there
                _log.warning("haproxy does not follow: %s", error)

    def _leave_kernel(self, stable: Collection[int]) -> None:
        routes = self._kernel.read()
        kept = {known: port for known, port in routes.items() if known not in stable}
        if kept != routes:
            self._kernel.apply(kept)

    def _say(self, stable: int, choice: Choice) -> None:
        if self._said.get(stable) != choice:
            self._said[stable] = choice
            level = logging.WARNING if choice.poor else logging.INFO
            loss = "; a swap may lose requests on connections that callers keep" if choice.poor else ""
            _log.log(level, "port %d is led by %s: %s%s", stable, choice.way, choice.why, loss)
