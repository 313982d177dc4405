"""What a user asks for: specs, YAML with its lines, the schema, tasks and the shipped recipes.

Knows nothing of data or networks. Light: no torch at module level. Read `specs` and `phase_specs`,
then `load`; `reference` makes the schema and the table of keys from the specs.
"""

from hf_transfer.base.errors import UserError  # Spaces of 0.1.0 import it from here

__all__ = ["UserError"]
