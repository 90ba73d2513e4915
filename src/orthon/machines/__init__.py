"""How fast a device computes, and how fast ranks send: what the choice of a route weighs."""

from orthon.machines.detect import as_machine, machine_of, named_machine
from orthon.machines.machine import Link, Machine
from orthon.machines.table import MACHINES

__all__ = ["MACHINES", "Link", "Machine", "as_machine", "machine_of", "named_machine"]
