"""Quotas: which stages of a plan let each image keep an equal share, and of how many images.

Counts are static: of ``keep`` rows each of M images keeps ``keep // M``, the first ``keep % M`` one
more.  A stage can only share what is shared evenly when it begins: the stages before it in the
sequence have the same quota, and a stage in the tower leaves equally many rows of each image.
"""

from __future__ import annotations

from dataclasses import replace

from tokopt.ir.errors import InputError, UnsupportedError
from tokopt.ir.facts import Facts, TokenStack
from tokopt.ir.images import image_count
from tokopt.ir.plan import Plan, Quota


def images_of(facts: Facts, plan: Plan) -> dict[str, int]:
    """Return the number of images by site, for the stages in which images do not compete.

    Raises ``InputError`` for a quota in a tower, and ``UnsupportedError`` where it is not known
    how many rows of each image a stage begins with.
    """
    found: dict[str, int] = {}
    for stage in plan.stages:
        stack, site = facts.find_site(stage.site)
        if stage.quota == "joint":
            continue
        if not stack.role.startswith("decoder"):
            raise InputError(
                f"quota = {stage.quota} at {stage.site}",
                expected="a stage in the decoder: in a tower every picture of its batch keeps "
                f"{stage.keep} rows on its own",
            )
        if site.group > 1:
            raise UnsupportedError(
                f"quota = {stage.quota} at {stage.site}, where rows leave in groups of {site.group}"
            )
        found[stage.site] = image_count(facts, stack, stage.quota)
        _check_towers(facts, plan, stack, found[stage.site])
    for stage in plan.stages:
        if stage.site in found:
            _check_earlier(facts, plan, stage.site, found)
    return found


def with_quota(facts: Facts, plan: Plan, quota: Quota) -> Plan:
    """Return a plan under which every image keeps an equal share in the end.

    Raises ``UnsupportedError`` where a stage in a tower does not keep equally many rows of each.
    """
    if quota == "joint":
        return plan
    consumer = facts.consumer
    _check_towers(facts, plan, consumer, image_count(facts, consumer, quota))
    stages = (
        replace(stage, quota=quota) if facts.find_site(stage.site)[0] is consumer else stage
        for stage in plan.stages
    )
    return replace(plan, stages=tuple(stages))


def shares(keep: int, images: int) -> tuple[int, ...]:
    """Return how many of ``keep`` rows each image has; what is left over goes to the first ones."""
    each, left = divmod(keep, images)
    return tuple(each + (number < left) for number in range(images))


def _check_towers(facts: Facts, plan: Plan, stack: TokenStack, images: int) -> None:
    for stage in plan.stages:
        tower, site = facts.find_site(stage.site)
        if tower is stack or tower.tokens.root is stack.tokens.root:
            continue
        arrival = facts.arrival(site, stack)
        if arrival is None:
            continue
        rows = set(arrival.reach.sum(1).tolist())
        if len(arrival.reach) != images or len(rows) > 1 or arrival.others:
            raise UnsupportedError(
                f"the stage at {site.name} does not keep equally many rows of each of {images} "
                f"images: {tower.role} sees {len(arrival.reach)} pictures in a prompt",
                expected=f"stages in {stack.role} alone",
                hint="a method that is placed there, for example --method fastv",
            )


def _check_earlier(facts: Facts, plan: Plan, name: str, images: dict[str, int]) -> None:
    stack, site = facts.find_site(name)
    for stage in plan.stages:
        other, before = facts.find_site(stage.site)
        if other is not stack or before.depth >= site.depth:
            continue
        if images.get(before.name) != images[name]:
            raise UnsupportedError(
                f"how many rows each image has left at {name} is only known at run time: "
                f"{before.name} has another quota",
                expected=f"the quota of {name} at {before.name} too",
            )
