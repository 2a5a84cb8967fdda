"""Figures that are cheap to hold: memory when idle, what is imported, and whom its clients trust."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.servers.daemon import ROOT, DaemonProcess
from tests.servers.ports import eventually

pytestmark = [pytest.mark.xdist_group("acceptance-figures")]

THREE_RULES = """
rules:
  - name: connections
    match: ['alertname = "TooManyConnections"']
    checks: {server: {postgres.connections: {connection: orders}}}
    remedies:
      - name: end idle connections
        when: checks.server.percent > 80.0
        steps: [{postgres.terminate_idle: {connection: orders}}]
  - name: memory
    match: ['alertname = "RedisMemoryHigh"']
    checks: {memory: {redis.memory: {connection: cache}}}
    remedies:
      - name: more memory
        when: checks.memory.percent > 90.0
        steps: [{redis.config_set: {connection: cache, parameter: maxmemory, value: 2gb}}]
  - name: flag
    match: ['alertname = "Slow"']
    remedies:
      - name: switch it off
        steps: [{http.request: {connection: flags, method: PUT, path: /flags/slow, json: {enabled: false}}}]
"""
CONNECTIONS = {
    "orders": {"kind": "postgres", "host": "127.0.0.1", "port": 1, "user": "nobody", "ssl": "disable"},
    "cache": {"kind": "redis", "host": "127.0.0.1", "port": 1},
    "flags": {"kind": "http", "base_url": "http://127.0.0.1:1"},
}
NEVER = {"boto3", "botocore", "kubernetes", "kubernetes_asyncio", "typer", "rich", "jinja2"}


async def test_idle_memory_with_the_general_pack(tmp_path: Path) -> None:
    """With rules/general loaded the idle daemon holds at most 80 MB."""
    async with DaemonProcess(tmp_path, {"packs": {"general": {"path": str(ROOT / "rules" / "general")}}}) as daemon:
        assert (await daemon.get("status"))["rules"] > 5
        assert daemon.rss <= 80 * 1024 * 1024, f"{daemon.rss / 1e6:.0f} MB"


async def test_three_rules_import_no_foreign_sdk(tmp_path: Path) -> None:
    """A pack of three rules for PostgreSQL, Redis and HTTP has nothing imported that it does not need: no cloud's SDK, no command line."""
    environment = {"PYTHONPROFILEIMPORTTIME": "1"}
    async with DaemonProcess(tmp_path, {"connections": CONNECTIONS}, rules=THREE_RULES, environment=environment) as daemon:

        async def counted() -> bool:
            return await daemon.metric("remediator_rules_loaded") == 3

        await eventually(counted, what="the rules are loaded")
    modules = set(re.findall(r"^import time:\s+\d+ \|\s+\d+ \|\s+(\S+)$", daemon.log, re.MULTILINE))
    assert "remediator.app.daemon" in modules
    # A module that is looked for and not found stands there too, without any of its parts.
    assert {module for module in modules if module.partition(".")[0] in NEVER and f"{module.partition('.')[0]}." in daemon.log} == set()


def test_no_client_trusts_anybody_by_default() -> None:
    """The contexts that aiohttp makes when it is imported know no authority and verify: one used by mistake is refused."""
    program = """
import ssl
from remediator.cli.serve import trusting_nobody
with trusting_nobody():
    import aiohttp.connector
known = aiohttp.connector._SSL_CONTEXT_VERIFIED
print(known.verify_mode is ssl.CERT_REQUIRED, known.check_hostname, known.cert_store_stats()["x509_ca"])
print("set_default_verify_paths" in vars(ssl.SSLContext))
"""
    found = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    assert found.splitlines() == ["True True 0", "False"]
