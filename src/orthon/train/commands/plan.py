"""`orthon plan`: what a step of several optimizers costs on a cluster that is not here."""

import json
from pathlib import Path
from shlex import quote
from typing import Annotated

import yaml
from cyclopts import Parameter
from rich.console import Console

from orthon import machines
from orthon.machines import Machine
from orthon.train.commands.machine_word import machine_of_word
from orthon.train.commands.plan_lines import lines_below
from orthon.train.commands.planned import Planner
from orthon.train.commands.training_step import TrainingStep
from orthon.train.errors import UserError
from orthon.train.processes.launch import process_rank, processes
from orthon.train.results.asked_files import refuse_unwritable
from orthon.train.results.console import plain_console
from orthon.train.results.directory import replace_file
from orthon.train.results.plan_progress import PlanProgress
from orthon.train.settings.cluster import MEASURE, PlanConfig


def plan(*, config: Annotated[PlanConfig, Parameter(name="*")] = PlanConfig()) -> None:  # noqa: B008  # frozen
    """Plan a step of each optimizer, and print a table with what it takes.

    Raises:
        UserError: the settings cannot be used, the mesh does not divide the model, or the model fits nowhere.
    """
    console = plain_console()
    refuse_unwritable(config.json_file, config.picture, config.machine_file if config.machine == MEASURE else None)
    if config.machine == MEASURE:
        machine = _measured(config.machine_file, console)
        if processes() > 1:
            return  # the mesh of a plan is not that of these processes
    elif processes() > 1:
        raise UserError("plan works in one process, for as many as --mesh says; call it without torchrun")
    else:
        machine = machine_of_word(config.machine, measures=True)

    planner = Planner(config, machine)
    training = TrainingStep.of(config, planner.weights, machine)
    with PlanProgress(console, planner.count) as progress:
        asked = planner.asked(progress)
        table = asked.table(rest=training.seconds)
        # The rest takes longer. If nothing fits here, it may be that nothing does anywhere, which is an error.
        at_once = any(row.fits for row in asked.rows)
        if at_once:
            console.print(table, soft_wrap=True)
        found = planner.find(progress)
    if not at_once:
        console.print(table, soft_wrap=True)
    lines = lines_below(found, training)
    console.print("\n" + "\n".join(lines), soft_wrap=True)
    if config.json_file is not None:
        content = found.to_dict() | {"training_step_seconds": training.seconds, "said": lines}
        replace_file(config.json_file, json.dumps(content, indent=2) + "\n")
    if config.picture is not None:
        from orthon.train.results.plan_picture import plot_plan  # here: matplotlib takes long to import

        plot_plan(config.picture, f"{planner.name} on {machine.name}", found.by_fraction, found.by_ranks)


def _measured(path: Path, console: Console) -> Machine:
    """This machine, measured. The figures are written to a file."""
    with PlanProgress(console, 0) as progress:
        machine = machines.measure(progress=lambda what, part: progress(round(100 * part), 100, what))
    if process_rank() == 0:
        replace_file(path, yaml.safe_dump(machines.plain_values(machine), sort_keys=False, allow_unicode=True))
    console.print(f"measured this machine: {path}; plan for it again with --machine {quote(str(path))}", soft_wrap=True)
    return machine
