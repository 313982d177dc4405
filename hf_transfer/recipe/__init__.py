"""What a user asks for: specs, YAML with its lines, the schema, tasks and the shipped recipes.

Knows nothing of data or networks. Light: no torch at module level. Read `specs`, then `schema` and
`load`.
"""

from hf_transfer.base.errors import UserError  # Spaces of 0.1.0 import it from here

__all__ = ["UserError"]
