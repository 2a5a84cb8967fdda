"""The daemon as a whole: its parts put together, started, stopped and reloaded. Nothing here decides anything."""
