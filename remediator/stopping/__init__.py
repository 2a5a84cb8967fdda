"""What stops all automation from outside, and how others notice that the daemon itself has stopped.

`watchdog` is pure, `watchdog_keeper` is its loop; `kill_switch` and `heartbeat` are loops of their own.
"""
