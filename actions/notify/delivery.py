"""Hand one message over to an HTTP endpoint: what every kind of notification has in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, TypeVar

from actions.notify.sending import Message, check_secret_url, open_sender
from actions.notify.wording import Wording, takes_pages
from remediator.action import Action, Context, Permission
from remediator.httpclient import WebConnection
from remediator.model import Health, Plan, Receipt, Repeat, Risk, Target, Verdict

__all__ = ["Delivery", "Message", "Messenger", "check_secret_url", "nothing_to_say", "target_of"]

P = TypeVar("P", bound=Wording)


class Messenger(Action[P]):
    """A message to people."""

    risk = Risk.LOW
    repeat = Repeat.NEVER
    reversible = False
    notifies = True
    permissions: ClassVar[tuple[Permission, ...]] = ()

    @classmethod
    def pages(cls, params: Any) -> bool:
        """Tell whether pages are taken, by kind and template."""
        return takes_pages(params)

    async def verify(self, plan: Plan, receipt: Receipt, ctx: Context) -> Verdict:  # noqa: ARG002 - nothing more can be read
        """Compare the recorded status: the receiver took it. Whether anybody read it is for acknowledgement."""
        status = receipt.data.get("status")
        if plan.noop or (isinstance(status, int) and 200 <= status < 300):
            return Verdict(Health.HEALTHY, receipt.message)
        return Verdict(Health.UNKNOWN, f"no delivery is on record: {status}")


class Delivery(Messenger[P]):
    """A message to people, sent by HTTP. Derived classes say what the message is."""

    connection: ClassVar[type[WebConnection]]

    @abstractmethod
    async def messages(self, plan: Plan, ctx: Context) -> Sequence[Message]:
        """Return the requests that carry the plan's payload, mostly one. Secrets are read here and not earlier."""

    async def apply(self, plan: Plan, ctx: Context) -> Receipt:
        """Send the message once; a plan with nothing to say sends nothing.

        Raises `TemporaryError` for 429 and 5xx (with the delay that was asked for), `PermanentError` for other refusals, and
        `OutcomeUnknown` when the answer was lost: the message may have arrived, and its key lets a receiver see a repetition.
        """
        if plan.noop:
            return Receipt(plan.summary)
        what = f"the receiver of connection {plan.connection!r}"
        sender = await ctx.client(self.connection, plan.connection, open_sender)
        status = 0
        for message in await self.messages(plan, ctx):
            headers = {"Content-Type": "application/json", "Idempotency-Key": ctx.key, **message.headers}
            answer = await sender.send(Message(message.url, message.body, headers, message.secrets), ctx, what=what)
            status = answer.status
        return Receipt(f"{what} took the message ({status})", {"status": status}, tuple(target.id for target in plan.targets))


def nothing_to_say(action: str, connection: str, target: Target, why: str) -> Plan:
    """Return the plan of a message that is not for this receiver."""
    return Plan(
        action=action,
        summary=f"nothing for {connection}: {why}",
        targets=(target,),
        intent={"why": why},
        connection=connection,
        noop=True,
    )


def target_of(system: str, connection: str, ctx: Context) -> Target:
    """Return the target of a message: the connection, and the incident it is about."""
    name = f"{system}:{connection}/-/message/{ctx.values.get('incident', '-')}"
    return Target(name, name)
