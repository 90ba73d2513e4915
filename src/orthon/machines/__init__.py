"""How fast a device computes, and how fast ranks send: what the choice of a route weighs."""

from orthon.machines.detect import as_machine, machine_of, named_machine
from orthon.machines.machine import Link, Machine
from orthon.machines.measuring import measure
from orthon.machines.table import MACHINES
from orthon.machines.values import machine_from, plain_values

__all__ = [
    "MACHINES",
    "Link",
    "Machine",
    "as_machine",
    "machine_from",
    "machine_of",
    "measure",
    "named_machine",
    "plain_values",
]
