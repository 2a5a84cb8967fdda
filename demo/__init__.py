"""`make demo`: the main job for real, on loopback, in a terminal.

A real PostgreSQL is exhausted by idle connections, a real Prometheus rule fires, a real Alertmanager tells the daemon, which looks, plans,
asks for an approval, ends the idle connections, verifies, and can prove all of it.
"""
