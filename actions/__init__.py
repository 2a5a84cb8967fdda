"""Actions and checks, one module or package per target system.

Each imports only the pure contract (`remediator.action`, `remediator.model`, `remediator.errors`), never another
system's module and never the engine. SDKs are imported on first use, inside functions.
"""
