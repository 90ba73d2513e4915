"""`orthon explain`: what an optimizer would do with each parameter, before anything is trained."""

from typing import Annotated

from cyclopts import Parameter

import orthon
from orthon.train.commands.machine_word import machine_of_word
from orthon.train.errors import UserError
from orthon.train.model.cluster import on_cluster
from orthon.train.model.on_meta import model_on_meta
from orthon.train.processes.launch import processes
from orthon.train.settings.cluster import ExplainConfig
from orthon.train.step.optimizers import build_mixed


def explain(*, config: Annotated[ExplainConfig, Parameter(name="*")] = ExplainConfig()) -> None:  # noqa: B008  # frozen
    """Print which parameter goes where and why, the state, and what many ranks communicate.

    Raises:
        UserError: the settings cannot be used, or the mesh does not divide the model.
    """
    if processes() > 1:
        raise UserError("explain works in one process, for as many as --mesh says; call it without torchrun")
    machine = machine_of_word(config.machine)
    model = model_on_meta(config)
    with on_cluster(model, config.sizes) as ranks:
        optimizer = build_mixed(model, config.optimizer, 0, ranks)
        print(orthon.explain(optimizer, machine=machine))
