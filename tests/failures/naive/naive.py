"""Actions as somebody in a hurry writes them: no comparison with the plan, no refusal of an empty list. They write to a real Redis.

The shipped actions refuse most of this themselves; what the guards are for shows only with actions that don't.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from remediator.action import Action, Context, Params, Permission, PermissionKind, Provider
from remediator.model import Health, Impact, Plan, Receipt, Repeat, Risk, Target, Verdict

RIGHT = Permission(PermissionKind.REDIS, ("+@all",))


class Redis:
    """A client of the server on a loopback port, open inside the block."""

    def __init__(self, port: int) -> None:
        from redis.asyncio import Redis as Client

        self._client = Client(host="127.0.0.1", port=port, decode_responses=True)

    async def __aenter__(self) -> Any:
        return self._client

    async def __aexit__(self, *_error: object) -> None:
        await self._client.aclose()


class WipeParams(Params):
    """Which disks to wipe: those with keys that start with `prefix`."""

    port: int
    prefix: str


class Wipe(Action[WipeParams]):
    """Wipes the disks of its list, and all disks when nobody gave it a list: for the machine below, no list means every disk."""

    name = "naive.wipe"
    Params = WipeParams
    risk = Risk.LOW
    repeat = Repeat.DETECTABLE
    reversible = False
    permissions = (RIGHT,)
    example: ClassVar[Mapping[str, Any]] = {"port": 6379, "prefix": "disk:1"}

    async def plan(self, params: WipeParams, ctx: Context) -> Plan:
        async with Redis(params.port) as redis:
            disks = sorted(await redis.keys(f"{params.prefix}*"))
            total = await redis.dbsize()
        targets = tuple(Target(f"disks:here/-/disk/{disk}", f"disks:here/-/disk/{disk}") for disk in disks)
        impact = Impact(len(disks), total)
        return Plan(self.name, f"wipe {len(disks)} disks", targets, {"port": params.port, "disks": disks}, impact=impact)

    async def apply(self, plan: Plan, ctx: Context) -> Receipt:
        disks = plan.intent["disks"]
        async with Redis(int(str(plan.intent["port"]))) as redis:
            await (redis.delete(*disks) if disks else redis.flushdb())  # type: ignore[misc]
        return Receipt("wiped")

    async def verify(self, plan: Plan, receipt: Receipt, ctx: Context) -> Verdict:
        return Verdict(Health.HEALTHY, "wiped")


class CopyParams(Params):
    """Which disk to write anew."""

    port: int
    disk: str


class Copy(Action[CopyParams]):
    """Reads a disk, takes its time (until somebody says `go`), and writes what it read: whatever happened meanwhile is undone."""

    name = "naive.copy"
    Params = CopyParams
    risk = Risk.LOW
    repeat = Repeat.DETECTABLE
    reversible = False
    permissions = (RIGHT,)
    example: ClassVar[Mapping[str, Any]] = {"port": 6379, "disk": "m1:1"}

    async def plan(self, params: CopyParams, ctx: Context) -> Plan:
        ident = f"disks:here/-/disk/{params.disk}"
        intent = {"port": params.port, "disk": params.disk}
        return Plan(self.name, f"copy {params.disk}", (Target(ident, ident),), intent, impact=Impact(1))

    async def apply(self, plan: Plan, ctx: Context) -> Receipt:
        async with Redis(int(str(plan.intent["port"]))) as redis:
            data = await redis.get(plan.intent["disk"])
            await redis.set("copying", "yes")
            await redis.blpop("go", timeout=20)
            await redis.set(plan.intent["disk"], data)
        return Receipt("copied")

    async def verify(self, plan: Plan, receipt: Receipt, ctx: Context) -> Verdict:
        return Verdict(Health.HEALTHY, "copied")


class PointParams(Params):
    """Where the plans are counted."""

    port: int


class Point(Action[PointParams]):
    """Points an address at what the newest plan says; each planning makes a newer plan. It compares nothing when it is carried out."""

    name = "naive.point"
    Params = PointParams
    risk = Risk.LOW
    repeat = Repeat.DETECTABLE
    reversible = False
    permissions = (RIGHT,)
    example: ClassVar[Mapping[str, Any]] = {"port": 6379}

    async def plan(self, params: PointParams, ctx: Context) -> Plan:
        async with Redis(params.port) as redis:
            number = await redis.incr("plans")
        target = Target("dns:here/-/record/endpoint", "dns:here/-/record/endpoint")
        return Plan(self.name, f"point it at plan {number}", (target,), {"port": params.port, "plan": number}, impact=Impact(1))

    async def apply(self, plan: Plan, ctx: Context) -> Receipt:
        async with Redis(int(str(plan.intent["port"]))) as redis:
            await redis.set("endpoint", str(plan.intent["plan"]))
        return Receipt("pointed")

    async def verify(self, plan: Plan, receipt: Receipt, ctx: Context) -> Verdict:
        return Verdict(Health.HEALTHY, "pointed")


PROVIDER = Provider("naive", actions=(Wipe, Copy, Point))
