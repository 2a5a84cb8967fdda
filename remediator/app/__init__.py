"""The daemon as a whole. Nothing here decides anything.

`current` is what a reload replaces, `ground` what all parts stand on, `parts` makes each of the others, `daemon` starts and stops them
and implements what surfaces ask for, `reloading` reads settings and rules again, `telling` counts and logs what became durable,
`keeping_open` keeps connections open, `serving` runs it all until a signal ends it.
"""
