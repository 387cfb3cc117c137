"""An operator of a group that Sentinels watch, who ends himself with kill -9 just before or after an effect, if any."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from datetime import timedelta
from typing import Any, cast

from resilience.model.failover import FailoverPolicy
from resilience.operations.group import FailoverGroup
from resilience.operations.switchover import switchover
from resilience.primitives import Fencer, Promoter
from resilience.redis.fencer import SentinelFencer
from resilience.redis.members import RedisMember
from resilience.redis.promoter import SentinelPromoter
from resilience.stores import LocalStore


class Mortal:
    """Does what the real one does, and dies `when` ("before", "after") `effect`."""

    def __init__(self, real: object, when: str, effect: str) -> None:
        self.real, self.when, self.effect = real, when, effect

    def __getattr__(self, name: str) -> object:
        found: Any = getattr(self.real, name)
        if name != self.effect:
            return found

        async def dying(*args: object, **options: object) -> object:
            if self.when == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            await found(*args, **options)
            os.kill(os.getpid(), signal.SIGKILL)
            return None

        return dying


async def main(given: dict[str, Any]) -> None:
    members = [RedisMember(name, url=url) for name, url in given["members"].items()]
    async with SentinelPromoter("orders", members=members, sentinels=given["sentinels"], watched="orders") as promoter:
        group = FailoverGroup(
            "orders",
            promoter=cast("Promoter", Mortal(promoter, given["when"], given["effect"])),
            fencers=[cast("Fencer", Mortal(SentinelFencer(promoter), given["when"], given["effect"]))],
            journal=LocalStore(given["journal"]),
        )
        policy = FailoverPolicy(max_loss=timedelta(seconds=5))
        await switchover(group, policy=policy, to=given.get("to"), actor="anna")


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])))
