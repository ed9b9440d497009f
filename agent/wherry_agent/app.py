"""`wherry-agent`: arguments in, exit code out. Each command imports what it needs."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from wherry import __version__
from wherry.errors import ConfigError, Conflict, FitError, IdentityError, InputError, StoreError, WherryError
from wherry_agent.installation import usual_state

_LOG_BYTES = 1_000_000


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line. Returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        code: int = options.command(options)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # who read this (`| head`) has enough; nor may the flush at the end fail
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except WherryError as error:
        print(_error_text(error), file=sys.stderr)  # noqa: T201
        return 1
    return code


def _error_text(error: WherryError) -> str:
    """The three lines that `wherry` prints, too."""
    code = f"{error.code} (wherry explain {error.code})"
    return f"wherry-agent: {error.thing}: {error.reason}.\n  Next: {error.fix}.\n  Code: {code}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="wherry-agent", description="Carries signed models to this device.")
    parser.add_argument("--version", action="version", version=f"wherry-agent {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    enroll = commands.add_parser(
        "enroll", help="make this machine a device, with the line that `wherry device token` printed"
    )
    enroll.add_argument("token", help="the join token")
    enroll.add_argument("--profile", help="device profile; detected when left out")
    enroll.set_defaults(command=_enroll)
    run = commands.add_parser("run", help="the daemon: verify, swap, watch and report")
    run.set_defaults(command=_run)
    supervise = commands.add_parser(
        "supervise", help="run the daemon, and go back to the version before when a new one fails"
    )
    for command in (run, supervise):
        command.add_argument("--config", type=Path, help="settings instead of STATE/agent.toml")
        command.add_argument(
            "--log", type=Path, metavar="FILE", help="log to this file, 2 MB at most with the one before it"
        )
    supervise.set_defaults(command=_supervise)
    status = commands.add_parser("status", help="what runs here, and how the last deployment ended")
    status.add_argument("--json", action="store_true", help="the reported state as JSON")
    status.add_argument("--watch", action="store_true", help="go on and show every change; end with Ctrl-C")
    status.set_defaults(command=_status)
    doctor = commands.add_parser("doctor", help="look at this machine: what is wrong, and how to mend it")
    doctor.add_argument("--config", type=Path, help="settings instead of STATE/agent.toml")
    doctor.add_argument("--json", action="store_true", help="the findings as JSON")
    doctor.set_defaults(command=_doctor)
    lock = commands.add_parser("lock", help="hold off swaps of what serves here, for a while")
    lock.add_argument("--minutes", type=float, default=60, help="at most 1440 (default %(default)s)")
    lock.add_argument("--holder", default="operator", help="who holds it, for operators to read")
    lock.add_argument("--reason", default="", help="why, for operators to read")
    lock.set_defaults(command=_lock)
    unlock = commands.add_parser("unlock", help="let swaps happen again")
    unlock.set_defaults(command=_unlock)
    cleanup = commands.add_parser("cleanup", help="remove this device's containers and routes; the agent must not run")
    cleanup.add_argument("--config", type=Path, help="settings instead of STATE/agent.toml")
    cleanup.set_defaults(command=_cleanup)
    uninstall = commands.add_parser("uninstall", help="remove everything of Wherry from this machine")
    uninstall.add_argument("--config", type=Path, help="settings instead of STATE/agent.toml")
    uninstall.add_argument("--yes", action="store_true", help="do not ask")
    uninstall.add_argument("--keep-state", action="store_true", help="keep the state folder: identity and journal")
    uninstall.set_defaults(command=_uninstall)
    for command in (enroll, run, supervise, status, doctor, lock, unlock, cleanup, uninstall):
        command.add_argument(
            "--state",
            type=Path,
            default=usual_state(),
            metavar="DIR",
            help="state folder (default %(default)s)",
        )
    return parser


def _enroll(options: argparse.Namespace) -> int:
    from wherry.join import JoinToken
    from wherry_agent.compose import make_trust, now
    from wherry_agent.enrolment import enrol
    from wherry_agent.state_folder import only_agent, refuse_folder_of_others

    refuse_folder_of_others(options.state)
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
    from wherry_agent.supervision import CANNOT_RUN, RUNS_AS, WORLD

    try:
        _run_agent(options)
    except (ConfigError, IdentityError, Conflict, StoreError) as error:
        if RUNS_AS not in os.environ:
            raise
        print(_error_text(error), file=sys.stderr)  # noqa: T201
        return WORLD if isinstance(error, StoreError) else CANNOT_RUN  # no other version could help
    return 0


def _run_agent(options: argparse.Namespace) -> None:
    from wherry_agent.compose import run_agent
    from wherry_agent.config import load_config

    config = load_config(options.state, options.config)
    logging.basicConfig(
        level=config.log_level.upper(),
        handlers=[_log_to(options.log)],
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    run_agent(options.state, config)


def _supervise(options: argparse.Namespace) -> int:
    """A process into which nothing of a release and nothing heavy is loaded, under the number of this one."""
    code = "import sys; sys.path.append(sys.argv[1]); from wherry_agent import supervisor; "
    code += "sys.exit(supervisor.main(sys.argv[2:]))"
    state = str(options.state.absolute())
    arguments = ["--state", state, *(["--config", str(options.config.absolute())] if options.config else [])]
    arguments += ["--log", str(options.log.absolute())] if options.log else []
    here = str(Path(__file__).parent.parent)
    os.execv(sys.executable, [sys.executable, "-I", "-S", "-c", code, here, state, *arguments])  # noqa: S606


def _log_to(path: Path | None) -> logging.Handler:
    """Without a service manager nobody else bounds the log, or keeps it from other users."""
    if path is None:
        return logging.StreamHandler()
    from logging.handlers import RotatingFileHandler

    os.umask(0o077)
    try:
        return RotatingFileHandler(path, maxBytes=_LOG_BYTES, backupCount=1, encoding="utf-8")
    except OSError as error:
        raise StoreError(f"log {path}", f"cannot be written ({error})") from error


def _status(options: argparse.Namespace) -> int:
    from wherry_agent.reporter import status_text
    from wherry_agent.state_folder import read_status, running_agent

    terminal = options.watch and sys.stdout.isatty()  # elsewhere each change is printed below the one before
    if terminal:
        print("\033[2J", end="")  # noqa: T201
    before = ""
    while True:
        report, running = read_status(options.state), running_agent(options.state) is not None
        if options.json:
            print(json.dumps({"running": running, **json.loads(report.to_bytes())}, indent=2))  # noqa: T201
        else:
            text = status_text(report, running)
            if terminal or text != before:
                print(_in_place(text) if terminal else text, flush=True)  # noqa: T201
            before = text
        if not options.watch:
            return 0
        time.sleep(1)


def _in_place(text: str) -> str:
    """Over what stood there: home, each line with its rest cleared, then all below. Nothing flickers."""
    return "\033[H" + text.replace("\n", "\033[K\n") + "\033[K\n\033[J"


def _doctor(options: argparse.Namespace) -> int:
    from wherry_agent.config import load_config
    from wherry_agent.doctor import doctor_text, examine, exit_code

    checks = examine(options.state, load_config(options.state, options.config))
    if options.json:
        print(json.dumps({"checks": [check.model_dump() for check in checks]}, indent=2))  # noqa: T201
    else:
        print(doctor_text(checks, sys.stdout.isatty() and "NO_COLOR" not in os.environ))  # noqa: T201
    return exit_code(checks)


def _lock(options: argparse.Namespace) -> int:
    from datetime import UTC, datetime, timedelta

    from wherry_agent.update_lock import LockFile

    length = timedelta(minutes=options.minutes)
    held = LockFile(options.state).hold(options.holder, options.reason, length, datetime.now(UTC))
    print(f"swaps are held off until {held.expires:%F %T}Z; sooner with: wherry-agent unlock --state {options.state}")  # noqa: T201
    return 0


def _unlock(options: argparse.Namespace) -> int:
    from wherry_agent.update_lock import LockFile

    released = LockFile(options.state).release()
    print("the update lock is released" if released else "there was no update lock")  # noqa: T201
    return 0


def _cleanup(options: argparse.Namespace) -> int:
    from wherry_agent.compose import make_device
    from wherry_agent.config import load_config
    from wherry_agent.identity_store import IdentityStore
    from wherry_agent.state_folder import only_agent
    from wherry_agent.uninstall import clear_world

    config = load_config(options.state, options.config)
    with only_agent(options.state):
        identity = IdentityStore(options.state).load()
        count = clear_world(make_device(options.state, config, identity.device, identity.profile), [])
    print(f"removed {count} containers and the routes of {identity.device}")  # noqa: T201
    return 0


def _uninstall(options: argparse.Namespace) -> int:
    from wherry_agent.config import load_config
    from wherry_agent.uninstall import uninstall

    if not options.yes:
        kept = "" if options.keep_state else f", and its identity in {options.state}"
        print(f"This stops and removes what this device serves{kept}.")  # noqa: T201
        try:
            agreed = input("Remove it? [y/N] ").strip().lower() in ("y", "yes")
        except EOFError:
            agreed = False
        if not agreed:
            raise InputError("uninstall", "was not confirmed; nothing was changed", "Say y, or give --yes")

    def say(words: str) -> None:
        print(words)  # noqa: T201

    uninstall(options.state, load_config(options.state, options.config), options.keep_state, say)
    return 0


if __name__ == "__main__":
    sys.exit(main())
