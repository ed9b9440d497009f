"""`wherry-agent`: enroll, run, status, cleanup. Arguments in, exit code out; each command imports what it needs."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from wherry import __version__
from wherry.errors import FitError, InputError, NotFound, WherryError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line. Returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        code: int = options.command(options)
    except WherryError as error:
        print(f"wherry-agent: {error}", file=sys.stderr)  # noqa: T201
        return 1
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="wherry-agent", description="Carries signed models to this device.")
    parser.add_argument("--version", action="version", version=f"wherry-agent {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    enroll = commands.add_parser(
        "enroll", help="make this machine a device, with the line that `wherry device token` printed"
    )
    enroll.add_argument("token", help="the join line")
    enroll.add_argument("--profile", help="device profile; detected when left out")
    enroll.set_defaults(command=_enroll)
    run = commands.add_parser("run", help="the daemon: verify, swap, watch and report")
    run.add_argument("--config", type=Path, help="settings instead of STATE/agent.toml")
    run.set_defaults(command=_run)
    status = commands.add_parser("status", help="what runs here, and how the last deployment ended")
    status.add_argument("--json", action="store_true", help="the reported state as JSON")
    status.set_defaults(command=_status)
    cleanup = commands.add_parser("cleanup", help="remove this device's containers and routes; the agent must not run")
    cleanup.add_argument("--config", type=Path, help="settings instead of STATE/agent.toml")
    cleanup.set_defaults(command=_cleanup)
    for command in (enroll, run, status, cleanup):
        command.add_argument(
            "--state",
            type=Path,
            default=Path("/var/lib/wherry"),
            metavar="DIR",
            help="state folder (default %(default)s)",
        )
    return parser


def _enroll(options: argparse.Namespace) -> int:
    from wherry.join import JoinToken
    from wherry_agent.compose import make_trust, now, only_agent
    from wherry_agent.enrolment import enrol

    profile = _profile(options.profile)
    token = JoinToken.decode(options.token)
    trust = make_trust(options.state, token.device, profile, token.server, None)
    with only_agent(options.state):
        identity = enrol(options.state, options.token, profile, __version__, trust.install_root, now)
    print(  # noqa: T201
        f"enrolled as {identity.device} ({identity.profile}) at {identity.server_url}; "
        f"certificate valid until {identity.expires:%F %T}Z"
    )
    print(f"next: wherry-agent run --state {options.state}")  # noqa: T201
    return 0


def _profile(wanted: str | None) -> str:
    """The named profile if this machine has it, or the detected one."""
    from wherry.profile import detect_profile, get_profile, load_profiles
    from wherry_agent.host import read_facts

    profiles, facts = load_profiles(), read_facts()
    if wanted:
        profile = get_profile(wanted, profiles)
        if profile.detect.architecture and facts.architecture not in profile.detect.architecture:
            raise FitError(
                f"device profile {wanted}", f"is not for {facts.architecture}", "Leave --profile out to detect it"
            )
        return wanted
    found = detect_profile(facts, profiles.values())
    if found is None:
        raise InputError("device profile", f"none fits this machine ({facts.architecture})", "Name one with --profile")
    return found.name


def _run(options: argparse.Namespace) -> int:
    from wherry_agent.compose import run_agent
    from wherry_agent.config import load_config

    config = load_config(options.state, options.config)
    logging.basicConfig(
        level=config.log_level.upper(), stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    run_agent(options.state, config)
    return 0


def _status(options: argparse.Namespace) -> int:
    from wherry.messages import StateReport, parse_up
    from wherry_agent.compose import STATUS_FILE, is_running
    from wherry_agent.reporter import status_text

    try:
        body = (options.state / STATUS_FILE).read_bytes()
    except OSError:
        raise NotFound(
            f"status of {options.state}", "there is none: no agent has run here yet", "Run `wherry-agent run` first"
        ) from None
    report = parse_up(body)
    if not isinstance(report, StateReport):
        raise NotFound(f"status of {options.state}", "is not a state report", "Run `wherry-agent run` again")
    running = is_running(options.state)
    if options.json:
        print(json.dumps({"running": running, **json.loads(report.to_bytes())}, indent=2))  # noqa: T201
    else:
        print(status_text(report, running))  # noqa: T201
    return 0


def _cleanup(options: argparse.Namespace) -> int:
    from wherry_agent.compose import make_device, only_agent
    from wherry_agent.config import load_config
    from wherry_agent.identity_store import IdentityStore

    config = load_config(options.state, options.config)
    with only_agent(options.state):
        identity = IdentityStore(options.state).load()
        device = make_device(config, identity.device, identity.profile)
        device.route.clear()
        names = sorted(device.engine.observe())
        for name in names:
            device.engine.remove(name)
    print(f"removed {len(names)} containers and the routes of {identity.device}")  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
