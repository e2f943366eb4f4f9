"""Options that say what a sandbox may reach, and how they become a policy. Used by `run`, `new` and `network`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from cove.cli.failures import usage

if TYPE_CHECKING:
    from cove.sdk.network_calls import Policy

F = TypeVar("F", bound=Callable[..., Any])
RULES = "HOST, *.HOST, CIDR, each with :PORTS and /tcp or /udp. May be repeated."


def network_options(function: F, default: str = "none") -> F:
    """Add the options of a network; `default` is what the help says of a sandbox that is asked for none."""
    for option in reversed(
        (
            click.option(
                "--network",
                metavar="WORD",
                help=f"none, open, or a profile (cove network profiles ls). Default: {default}.",
            ),
            click.option("--allow", multiple=True, metavar="RULE", help=f"Let it reach this: {RULES}"),
            click.option("--deny", multiple=True, metavar="RULE", help="Refuse this, before all that is allowed."),
            click.option(
                "--link", multiple=True, metavar="BOX", help="Let it reach this sandbox of the project, by name."
            ),
        )
    ):
        function = option(function)
    return function


def network_of(word: str | None, allow: Sequence[str], deny: Sequence[str], link: Sequence[str]) -> Policy | None:
    """Return the policy that `network_options` describe; None: nothing was said. Raises: Failure, BadRequest.

    Refusals stand first: they are the exceptions. With `open` they are exceptions from the internet, alone from nothing
    that could be meant.
    """
    if not (allow or deny or link):
        return word
    if deny and not allow and word in {None, "none"}:
        raise usage("--deny takes something away: say from what", "--network open --deny HOST")
    if word == "none" and allow:
        raise usage("--network none and --allow exclude each other", "--allow HOST alone")
    from cove.sdk.network_calls import rule_of

    policy: dict[str, Any] = {}
    if link:
        policy["links"] = list(link)
    if allow or deny:
        policy["rules"] = [*(rule_of(one, "deny") for one in deny), *(rule_of(one) for one in allow)]
    if word == "open":
        policy |= {"default": "allow"} if allow or deny else {"mode": "open"}
    elif word not in {None, "none"}:
        policy["profile"] = word
    return policy
