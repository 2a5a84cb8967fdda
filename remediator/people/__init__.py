"""What people may ask of the daemon, and who may ask it.

`authentication` says who calls and what they may; `operations` is pure and says what each request changes; `desk` makes that durable.
"""
