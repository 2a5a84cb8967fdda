"""Play the demo: `python -m demo [--once]`."""

from __future__ import annotations

import argparse
import asyncio
import json
import shlex
import sys
from pathlib import Path
from typing import Any

from demo.stage import IDLE_CLIENTS, IDLE_FOR, MAX_CONNECTIONS, ROOT, Stage
from demo.terminal import StepFailedError, Terminal, paint


class Story:
    """The incident, step by step as it happens; every tick is something that was looked up, not assumed."""

    def __init__(self, stage: Stage, terminal: Terminal) -> None:
        self.stage = stage
        self.out = terminal
        self.incident = ""
        self.approval: dict[str, Any] = {}

    async def play(self) -> None:
        """Play all steps. Raises `StepFailedError` when one did not happen."""
        await self.systems()
        await self.fault()
        await self.alert()
        await self.diagnosis()
        await self.rehearsal()
        await self.approve()
        await self.act()
        await self.verify()
        await self.resolve()
        await self.audit()

    async def systems(self) -> None:
        """Show what runs."""
        self.out.step("Real systems on loopback")
        status = await self.stage.call("GET", "/api/v1/status")
        self.out.say(f"PostgreSQL    127.0.0.1:{self.stage.postgres.port}  (max_connections {MAX_CONNECTIONS})")
        self.out.say(f"Prometheus    {self.stage.prometheus.url}")
        self.out.say(f"Alertmanager  {self.stage.alertmanager.url}")
        self.out.say(f"remediator    {self.stage.url}")
        self.out.say(f"a pager       {self.stage.pager.url}  (takes what would wake a person)")
        self.out.done(f"{status['rules']} rules loaded, dry_run {str(status['dry_run']).lower()}", when=status["rules"] > 0)

    async def fault(self) -> None:
        """Exhaust PostgreSQL."""
        self.out.step(f"The fault: the shop opens {IDLE_CLIENTS} of {MAX_CONNECTIONS} connections and leaves them idle")
        await self.stage.exhaust()
        sessions = await self.stage.sessions()
        self.out.done(f"{sessions} sessions of user shop in pg_stat_activity", when=sessions == IDLE_CLIENTS)

    async def alert(self) -> None:
        """Wait for Prometheus, Alertmanager and the incident."""
        self.out.step("The alert: Prometheus' rule fires, Alertmanager sends it to the webhook")
        await self.stage.prometheus.wait_for_alert("PostgresqlTooManyConnections", "firing", within=60)
        self.out.done("Prometheus has PostgresqlTooManyConnections firing")

        async def opened() -> bool:
            found = (await self.stage.call("GET", "/api/v1/incidents"))["items"]
            self.incident = found[0]["id"] if found else ""
            return bool(found)

        await self.stage.wait("remediator opened an incident", opened)
        event = await self.event("incident.opened")
        self.out.say(f"{self.incident}  {event['data']['severity']}  rule {event['data']['rule']}  target {event['data']['target']}")
        self.out.done(f"accepted durably and opened as {self.incident}: {event['data']['summary']}")

    async def diagnosis(self) -> None:
        """Show what the checks said, what was chosen, and the plan."""
        self.out.step("The diagnosis: looking at the real server, then choosing")
        self.out.dim([f"(the rule ends sessions that have been idle for {IDLE_FOR} and longer)"])
        chosen = await self.event("remedy.chosen", lambda event: event["data"]["remedy"] is not None)
        for condition in chosen["data"]["conditions"]:
            facts = ", ".join(f"{name.removeprefix('checks.')} = {value}" for name, value in condition["facts"].items())
            self.out.say(f"{condition['remedy']}: {condition['value']}  ({facts})")
        self.out.done(f"chosen: {chosen['data']['remedy']}")
        plan = await self.event("plan.made")
        self.out.step("The plan")
        for step in plan["data"]["steps"]:
            self.out.say(f"{step['step']}. {step['action']}: {step['summary']}")
            self.out.dim([*step["targets"][:3], "…"] if len(step["targets"]) > 3 else step["targets"])
        self.out.done(
            f"plan {plan['data']['hash'][:12]} touches {plan['data']['steps'][0]['touched']} sessions, by absolute pid and start time"
        )

    async def rehearsal(self) -> None:
        """Show what dry run would have done, and that it changes nothing."""
        self.out.step("The same in dry run: decided and planned, nothing written")
        before = await self.stage.sessions()
        firing = (await self.stage.alertmanager.alerts())[0]
        path = self.stage.directory / "alert.json"
        path.write_text(json.dumps({"labels": firing["labels"], "annotations": firing["annotations"]}))
        status, output = await self.stage.command("rehearse", str(path), "--json")
        trace = json.loads(output)[0]
        self.out.dim([f"$ remediator rehearse {path.relative_to(ROOT) if path.is_relative_to(ROOT) else path}"])
        self.out.say(f"remedy {trace['remedy']!r}; outcome: {trace['outcome']}")
        after = await self.stage.sessions()
        self.out.done(f"{before} sessions before, {after} after", when=status == 0 and before == after)

    async def approve(self) -> None:
        """Approve through the confirmation endpoint."""
        self.out.step("The approval: a person agrees to exactly this plan")

        async def asked() -> bool:
            found = (await self.stage.call("GET", "/api/v1/approvals?state=pending"))["items"]
            self.approval = found[0] if found else {}
            return bool(found)

        await self.stage.wait("an approval was asked for", asked)
        self.out.say(f"{self.approval['id']} waits, because {self.approval['reason']}")
        await self.stage.wait("the pager has the question", self.asked)
        self.out.done("the question reached the pager:")
        self.out.dim(next(text for text in self.stage.pages() if self.approval["id"] in text).splitlines())
        body = {"decision": "approve", "comment": "idle for long enough, end them"}
        self.out.dim([f"POST /api/v1/approvals/{self.approval['id']} {json.dumps(body)}"])
        await self.stage.call("POST", f"/api/v1/approvals/{self.approval['id']}", body)
        decided = await self.event("approval.decided")
        self.out.done(f"approved by {decided['actor']}", when=decided["actor"] == "anna" and decided["data"]["state"] == "approved")

    async def act(self) -> None:
        """Watch the action."""
        self.out.step("The act: intent written down, call made, receipt written down")
        intended = await self.event("action.intended")
        applied = await self.event("action.applied")
        self.out.say(f"{intended['at']}  intended  {intended['data']['action']}")
        self.out.say(f"{applied['at']}  applied   {applied['data']['message']}")
        sessions = await self.stage.sessions()
        self.out.done(f"{sessions} sessions of user shop left in pg_stat_activity", when=sessions < IDLE_CLIENTS)

    async def verify(self) -> None:
        """Watch the verification."""
        self.out.step("The verification: fresh readings until they hold")
        entered = await self.event("run.entered", lambda event: event["data"]["state"] in {"succeeded", "failed", "escalated"})
        for event in await self.events():
            if event["kind"] == "verification.read":
                self.out.dim([f"{event['data']['health']}: {event['data']['message']}"])
        self.out.done(
            f"run {entered['data']['run']} {entered['data']['state']}: {entered['data']['reason']}",
            when=entered["data"]["state"] == "succeeded",
        )

    async def resolve(self) -> None:
        """Wait until Alertmanager said resolved."""
        self.out.step("The alert is resolved")
        await self.stage.prometheus.wait_for_alert("PostgresqlTooManyConnections", "inactive", within=60)
        self.out.done("Prometheus has it inactive")
        await self.event("incident.resolved")
        incident = await self.stage.call("GET", f"/api/v1/incidents/{self.incident}")
        self.out.done(f"{self.incident} is {incident['state']}", when=incident["state"] == "resolved")

    async def audit(self) -> None:
        """Prove the audit trail."""
        self.out.step("The proof: remediator audit verify")
        status, output = await self.stage.command("audit", "verify", "--store", str(self.stage.directory / "state.sqlite"))
        self.out.say(output.strip())
        self.out.done("every chain holds", when=status == 0)

    # --- following

    async def asked(self) -> bool:
        """Tell whether the pager got the approval's text."""
        return any(self.approval["id"] in text for text in self.stage.pages())

    async def events(self) -> list[dict[str, Any]]:
        """Return the incident's events so far."""
        found: list[dict[str, Any]] = (await self.stage.call("GET", f"/api/v1/incidents/{self.incident}/events"))["items"]
        return found

    async def event(self, kind: str, fits: Any = lambda _event: True) -> dict[str, Any]:
        """Wait for the newest event of a kind."""
        found: list[dict[str, Any]] = []

        async def there() -> bool:
            found[:] = [event for event in await self.events() if event["kind"] == kind and fits(event)]
            return bool(found)

        await self.stage.wait(f"{kind} in the timeline of {self.incident}", there)
        return found[-1]


async def play(directory: Path, *, once: bool) -> int:
    """Set the stage, play, and keep everything running unless `once`."""
    terminal = Terminal()
    async with Stage(directory) as stage:
        story = Story(stage, terminal)
        try:
            await story.play()
        except (StepFailedError, AssertionError, RuntimeError) as error:
            print(f"\n{paint('The demo failed', 'red')} at step {terminal.steps}: {error}", file=sys.stderr)
            print(f"Logs are in {directory}", file=sys.stderr)
            return 1
        print(f"\n{paint('Everything above really happened.', 'green')}")
        if not once:
            await keep_running(stage, story)
    return 0


async def keep_running(stage: Stage, story: Story) -> None:
    """Say where to look, and wait for Ctrl-C."""
    command = shlex.join([str(ROOT / ".venv/bin/remediator"), "show", story.incident])
    print("\nIt keeps running until Ctrl-C. Look around:")
    print(f"  export REMEDIATOR_URL={stage.url} REMEDIATOR_TOKEN={stage.tokens['anna']}")
    print(f"  {command}")
    print(f"  {stage.url}/   in a browser; sign in with that REMEDIATOR_TOKEN")
    print(f'  curl -H "Authorization: Bearer $REMEDIATOR_TOKEN" {stage.url}/api/v1/incidents')
    print(f"  {stage.url}/metrics   {stage.prometheus.url}   {stage.alertmanager.url}")
    print(f"  settings, logs and state: {stage.directory}", flush=True)
    await asyncio.Event().wait()


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="demo", description=__doc__)
    parser.add_argument("--once", action="store_true", help="end after the story; status 0 only if every step happened")
    parser.add_argument("--directory", type=Path, default=ROOT / ".demo", help="where settings, logs and state go")
    arguments = parser.parse_args()
    try:
        return asyncio.run(play(arguments.directory.resolve(), once=arguments.once))
    except KeyboardInterrupt:
        print("\nstopped")
        return 0


if __name__ == "__main__":
    sys.exit(main())
