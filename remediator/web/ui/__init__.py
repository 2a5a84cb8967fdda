"""The web interface: pages for people, over the same handlers and rights as the JSON API.

`entry` hangs it on the application; everything else is imported when somebody asks for the first page. Pages read through the store and
change things only through routes of the API (`acts`). Every page works without JavaScript.
"""
