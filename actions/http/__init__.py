"""Look at web endpoints and call them: `http.get`, `http.websocket`, `http.tcp`, `http.tls_expiry` and the action `http.request`."""

from __future__ import annotations

from actions.http.address import HttpConnection, TcpConnection
from actions.http.get import Get
from actions.http.probes import Tcp, TlsExpiry, WebSocket
from actions.http.request import Request
from remediator.action import Provider

PROVIDER = Provider(
    "http",
    actions=(Request,),
    checks=(Get, WebSocket, Tcp, TlsExpiry),
    connections={"http": HttpConnection, "tcp": TcpConnection},
)

__all__ = ["PROVIDER"]
