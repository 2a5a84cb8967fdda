"""Real servers for tests and the demo, from Debian's packages, on free loopback ports. One module a server."""
