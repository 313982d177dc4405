"""What a user asks for: specs, YAML with its lines, the schema, tasks and the shipped recipes.

Knows nothing of data or networks. Light: no torch at module level. Read `specs`, then `schema` and
`load`.
"""
