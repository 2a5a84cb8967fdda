"""The pages, one module a topic. Each reads through the store and gives a template with its data; none changes anything."""
