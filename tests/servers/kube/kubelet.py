"""What a kubelet serves over HTTPS to the API server: logs and exec; the API server alone is let in, by its certificate."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from aiohttp import WSMsgType, web

from tests.servers.kube.containers import Container, kill_group, launch
from tests.servers.kube.control_plane import Layout
from tests.servers.kube.pods import SimulatedPod

Object = dict[str, Any]
PROTOCOLS = ("v5.channel.k8s.io", "v4.channel.k8s.io")
EXEC_PROTOCOL = "remediator.test/exec-protocol"
"""Annotation of a Pod: the only protocol that exec in it speaks; else the first that the client asks for and is known here."""
STDIN, STDOUT, STDERR, STATUS, _, CLOSE = 0, 1, 2, 3, 4, 255


class Kubelet:
    """The endpoint of all simulated nodes: one port, for Pods are named in the URLs."""

    def __init__(self, layout: Layout, find: Callable[[str, str], SimulatedPod | None]) -> None:
        self._layout = layout
        self._find = find
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        """Listen."""
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(self._layout.kubelet_certificate, self._layout.kubelet_key)
        tls.load_verify_locations(self._layout.ca)
        tls.verify_mode = ssl.CERT_REQUIRED
        app = web.Application()
        app.router.add_get("/containerLogs/{namespace}/{pod}/{container}", self._logs)
        app.router.add_route("*", "/exec/{namespace}/{pod}/{container}", self._exec)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self._layout.kubelet_port, ssl_context=tls).start()

    async def stop(self) -> None:
        """Stop."""
        if self._runner is not None:
            await self._runner.cleanup()

    # --- logs

    async def _logs(self, request: web.Request) -> web.StreamResponse:
        where = request.match_info
        pod = self._find(where["namespace"], where["pod"])
        container = pod.containers.get(where["container"]) if pod else None
        if pod is None or container is None:
            raise web.HTTPNotFound(text=f'pod "{where["pod"]}" or its container "{where["container"]}" does not exist')
        previous = request.query.get("previous") == "true"
        # While it waits for its next start, the last run's log is both the present and the previous one.
        between = container.process is None and container.ends
        log = (container.log if between else container.previous) if previous else container.log
        if log is None:
            what = f'container "{container.name}" in pod "{where["pod"]}"'
            said = f"previous terminated {what} not found" if previous else f"{what} is waiting to start: {(container.waiting or ('',))[0]}"
            raise web.HTTPBadRequest(text=said)
        return web.Response(body=chosen(list(log.lines), request.query), content_type="text/plain")

    # --- exec

    async def _exec(self, request: web.Request) -> web.StreamResponse:
        where = request.match_info
        pod = self._find(where["namespace"], where["pod"])
        container = pod.running_container(where["container"]) if pod else None
        if pod is None or container is None:
            raise web.HTTPInternalServerError(text=f'container not found ("{where["container"]}")')
        offered = request.headers.get("Sec-WebSocket-Protocol", "").replace(" ", "").split(",")
        only = pod.pod["metadata"].get("annotations", {}).get(EXEC_PROTOCOL)
        spoken = [only] if only else [protocol for protocol in offered if protocol in PROTOCOLS]
        if request.headers.get("Upgrade", "").lower() != "websocket" or not spoken or spoken[0] not in offered:
            raise web.HTTPForbidden(text=f"unable to upgrade: this kubelet speaks {', '.join(PROTOCOLS)}, not {offered}")
        socket = web.WebSocketResponse(protocols=(spoken[0],), max_msg_size=1 << 22, timeout=0.5)
        await socket.prepare(request)
        await Execution(socket, container, request).run()
        return socket


class Execution:
    """One program run in a container for somebody at a websocket; it does not outlive the connection."""

    def __init__(self, socket: web.WebSocketResponse, container: Container, request: web.Request) -> None:
        self._socket = socket
        self._container = container
        self._argv = request.query.getall("command", [])
        self._asked = {name for name in ("input", "output", "error") if request.query.get(name) in ("1", "true")}

    async def run(self) -> None:
        """Run it to its end, or until the client goes away."""
        pipe = asyncio.subprocess.PIPE
        streams = {"stdin": "input", "stdout": "output", "stderr": "error"}
        try:
            process = await launch(
                self._argv,
                self._container.directory,
                self._container.environment,
                **{stream: pipe if name in self._asked else asyncio.subprocess.DEVNULL for stream, name in streams.items()},
            )
        except OSError as error:
            await self._finish(_not_started(self._argv, error))
            return
        listening = asyncio.create_task(self._listen(process))
        ended = asyncio.create_task(self._speak(process))
        try:
            await asyncio.wait({listening, ended}, return_when=asyncio.FIRST_COMPLETED)
            if ended.done():
                await self._finish(_exited(self._argv, await ended))
        finally:
            kill_group(process)
            listening.cancel()
            ended.cancel()
            await asyncio.gather(listening, ended, return_exceptions=True)
            await process.wait()

    async def _speak(self, process: asyncio.subprocess.Process) -> int:
        await asyncio.gather(self._copy(process.stdout, STDOUT), self._copy(process.stderr, STDERR))
        return await process.wait()

    async def _copy(self, stream: asyncio.StreamReader | None, channel: int) -> None:
        while stream is not None and (chunk := await stream.read(32_768)):
            await self._socket.send_bytes(bytes([channel]) + chunk)

    async def _listen(self, process: asyncio.subprocess.Process) -> None:
        """Pass on stdin until the client goes away."""
        async for message in self._socket:
            data = message.data if message.type is WSMsgType.BINARY else b""
            if not data or process.stdin is None:
                continue
            if data[0] == STDIN:
                process.stdin.write(data[1:])
            elif data[0] == CLOSE and data[1:] == bytes([STDIN]):
                process.stdin.close()

    async def _finish(self, status: Object) -> None:
        await self._socket.send_bytes(bytes([STATUS]) + json.dumps(status).encode())
        await self._socket.close()


def _exited(argv: list[str], code: int) -> Object:
    if code == 0:
        return {"metadata": {}, "status": "Success"}
    number = code if code > 0 else 128 - code
    return {
        "metadata": {},
        "status": "Failure",
        "message": f"command terminated with non-zero exit code: error executing command [{' '.join(argv)}], exit code {number}",
        "reason": "NonZeroExitCode",
        "details": {"causes": [{"reason": "ExitCode", "message": str(number)}]},
    }


def _not_started(argv: list[str], error: OSError) -> Object:
    reason = "executable file not found in $PATH" if isinstance(error, FileNotFoundError) else str(error.strerror).lower()
    runc = f'OCI runtime exec failed: exec failed: unable to start container process: exec: "{argv[0] if argv else ""}": {reason}: unknown'
    said = f'error executing command in container: failed to exec in container: failed to start exec "simulated": {runc}'
    return {
        "metadata": {},
        "status": "Failure",
        "message": f"Internal error occurred: {said}",
        "reason": "InternalError",
        "details": {"causes": [{"message": said}]},
        "code": 500,
    }


def chosen(lines: list[tuple[float, bytes]], query: Any) -> bytes:
    """Return the part of a log that `tailLines`, `sinceSeconds`, `sinceTime`, `timestamps` and `limitBytes` ask for."""
    if "sinceSeconds" in query:
        since = datetime.now(UTC).timestamp() - float(query["sinceSeconds"])
        lines = [line for line in lines if line[0] >= since]
    if "sinceTime" in query:
        since = datetime.fromisoformat(query["sinceTime"]).timestamp()
        lines = [line for line in lines if line[0] >= since]
    if "tailLines" in query:
        lines = lines[-int(query["tailLines"]) :] if int(query["tailLines"]) else []
    if query.get("timestamps") == "true":
        body = b"".join(_nanoseconds(at).encode() + b" " + line for at, line in lines)
    else:
        body = b"".join(line for _, line in lines)
    return body[: int(query["limitBytes"])] if "limitBytes" in query else body


def _nanoseconds(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f") + "000Z"
