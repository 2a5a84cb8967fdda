"""The engine: leads one run from where it is to where it must wait or end.

`core` holds the engine itself (reading, writing, dispatch); the other modules hold one phase of a run each, as plain
functions of (engine, work). It looks at the world through `Execution` and `Revalidation`, lets pure code decide, and makes every
step durable through a `Turn` before the next one. Whatever happens to the process in between, the rows say where to go on.
"""
