"""Environment variables left over from other jobs are ignored; a wrong one that is used is named."""

import os
import re
import threading

import pytest
from process_settings import SRUN_SETS, TORCHRUN_SETS

from lshfm_pl.cli import environment
from lshfm_pl.cli.command import _run
from lshfm_pl.cli.environment import (
    first_node,
    prepare_environment,
    prepare_rendezvous,
    refuse_other_process_counts,
    refuse_several_processes,
)
from lshfm_pl.errors import LSHFMError

READ = {
    *TORCHRUN_SETS, *SRUN_SETS, "SLURM_NTASKS_PER_NODE", "SLURM_STEP_TASKS_PER_NODE", "SLURM_JOB_NAME",
    "SLURM_NODELIST", "NODE_RANK",
    "GROUP_RANK", "LOCAL_WORLD_SIZE", "JSM_NAMESPACE_RANK", "STANDALONE_PORT", "JSM_NAMESPACE_SIZE",
    "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE", "PL_TRAINER_DEVICES", "PL_TRAINER_BAREBONES",
}  # fmt: skip
BY_HAND = {
    "LOCAL_RANK": "1",
    "NODE_RANK": "0",
    "WORLD_SIZE": "2",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29500",
}


@pytest.fixture
def variables(monkeypatch):
    """Sets these variables and unsets all others; returns the ones that are used."""
    kept = dict(os.environ)
    for name in READ:
        os.environ.pop(name, None)

    def change(values=None):
        os.environ.update(values or {})
        return {name: os.environ[name] for name in READ if name in os.environ}

    yield change
    os.environ.clear()
    os.environ.update(kept)


@pytest.mark.parametrize(
    "left_over",
    [
        {"LOCAL_RANK": "x"},
        {"LOCAL_RANK": "1", "RANK": "1", "WORLD_SIZE": "2"},
        {"RANK": "3"},
        {"SLURM_NTASKS": "4(x2)"},
        {"SLURM_NTASKS": "4", "SLURM_NNODES": "1", "SLURM_NTASKS_PER_NODE": "4"},
        {
            "SLURM_PROCID": "0",
            "SLURM_LOCALID": "0",
            "SLURM_NODEID": "0",
            "SLURM_NTASKS": "2",
            "SLURM_NNODES": "2",
        },
        {"TORCHELASTIC_RUN_ID": "none"},
        {"MASTER_ADDR": "no-such-host.invalid", "MASTER_PORT": "29500", "NODE_RANK": "1"},
        {"GROUP_RANK": "x"},
        {"JSM_NAMESPACE_RANK": "2"},
        {"STANDALONE_PORT": ""},
    ],
)
def test_left_over_variables_are_not_read(left_over, variables):
    variables(left_over)
    prepare_environment()
    prepare_rendezvous(num_nodes=1)
    assert variables() == {}


def test_a_single_task_of_srun_is_a_process_like_any_other(variables):
    variables({**SRUN_SETS, "SLURM_NTASKS": "1"})
    prepare_environment()
    assert variables() == {"SLURM_STEP_ID": "0"}


@pytest.mark.parametrize("given", [TORCHRUN_SETS, BY_HAND])
def test_whole_groups_are_kept(given, variables):
    variables(given)
    prepare_environment()
    prepare_rendezvous(num_nodes=1)
    assert variables() == given


def test_tasks_of_srun_are_joined_however_it_was_called(variables):
    variables({**SRUN_SETS, "SLURM_JOB_NAME": "bash", "SLURM_NODELIST": "localhost"})
    prepare_environment()
    prepare_rendezvous(num_nodes=2)
    assert variables()["SLURM_NTASKS_PER_NODE"] == "2"
    assert variables()["SLURM_JOB_NAME"] != "bash"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({**SRUN_SETS, "SLURM_NTASKS": "4(x2)"}, "SLURM_NTASKS: .*'4(x2)'; .*unset SLURM_NTASKS"),
        ({**SRUN_SETS, "SLURM_NTASKS": "3"}, "SLURM_NTASKS: 3 tasks .* 2 nodes; .*--ntasks-per-node"),
        ({**SRUN_SETS, "SLURM_STEP_TASKS_PER_NODE": "3,1"}, "SLURM_NTASKS: 4 tasks .* 2 nodes"),
        ({**BY_HAND, "LOCAL_RANK": "-1"}, "LOCAL_RANK: .*'-1'; .*unset LOCAL_RANK"),
        ({**TORCHRUN_SETS, "WORLD_SIZE": "two"}, "WORLD_SIZE: .*'two'"),
        ({"MASTER_PORT": "99999"}, "MASTER_PORT: .*65535, found '99999'"),
        ({"NODE_RANK": "n1"}, "NODE_RANK: .*'n1'"),
    ],
)
def test_wrong_variable_is_named_in_one_line(given, message, variables, capsys):
    variables(given)
    with pytest.raises(SystemExit, match="1"):
        _run("train", lambda: pytest.fail("it must not run"))
    printed = capsys.readouterr().err
    assert re.search(message.replace("(x2)", r"\(x2\)"), printed), printed
    assert printed.count("\n") == 1


@pytest.mark.parametrize(
    "given",
    [
        {**SRUN_SETS, "SLURM_NODELIST": "no-such-host[1-2].invalid"},
        {"MASTER_ADDR": "no such host"},
        {"MASTER_ADDR": "." * 70},
    ],
)
def test_first_node_without_an_address_is_reported_at_once(given, variables):
    variables(given)
    prepare_environment()
    with pytest.raises(LSHFMError, match="host name .* has no address .*export MASTER_ADDR="):
        prepare_rendezvous(num_nodes=2)


def test_name_server_that_does_not_answer_is_not_waited_for(variables, monkeypatch):
    never = threading.Event()
    monkeypatch.setattr(environment.socket, "getaddrinfo", lambda *_: never.wait(20))
    monkeypatch.setattr(environment, "RESOLVE_SECONDS", 0.1)
    variables({"MASTER_ADDR": "somewhere"})
    with pytest.raises(LSHFMError, match="does not answer"):
        prepare_rendezvous(num_nodes=2)
    never.set()


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("n[1-2]", "n1"), ("a[07,9]", "a07"), ("a3", "a3"), ("b1,c[1-4]", "b1"), ("x[5].y", "x5.y")],
)
def test_first_of_a_list_of_nodes(nodes, first):
    assert first_node(nodes) == first


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (
            {"PL_TRAINER_DEVICES": "4", "PL_TRAINER_BAREBONES": "1"},
            "give trainer.barebones=…, trainer.devices=…",
        ),
        # As Kubeflow and others set them.
        (
            {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "n1", "MASTER_PORT": "29500"},
            "WORLD_SIZE=2 of the environment is ignored, since the rank of this process is not set",
        ),
        ({"WORLD_SIZE": "1"}, ""),
        (BY_HAND, ""),
    ],
)
def test_ignored_variable_is_reported_in_one_line(given, told, variables, capsys):
    variables(given)
    prepare_environment()
    printed = capsys.readouterr().err
    assert told in printed
    assert printed.count("\n") == bool(told)
    prepare_environment()
    assert capsys.readouterr().err == ""
    prepare_rendezvous(num_nodes=1)
    assert variables() == (BY_HAND if given is BY_HAND else {})


@pytest.mark.parametrize(
    ("given", "command", "message"),
    [
        (
            {"OMPI_COMM_WORLD_SIZE": "2"},
            "train",
            "OMPI_COMM_WORLD_SIZE=2: mpirun .*unset OMPI_COMM_WORLD_SIZE",
        ),
        ({"PMI_SIZE": "4"}, "report", "PMI_SIZE=4: .*processes of report, which is not supported"),
        ({"JSM_NAMESPACE_SIZE": "3"}, "evaluate", "JSM_NAMESPACE_SIZE=3: jsrun"),
        (SRUN_SETS, "compare", "srun has started 4 processes of compare, which needs only one"),
        (TORCHRUN_SETS, "report", "torchrun has started 2 processes of report"),
    ],
)
def test_processes_that_a_command_does_not_know_are_refused(given, command, message, variables):
    variables(given)
    with pytest.raises(LSHFMError, match=message):
        refuse_several_processes(command)


@pytest.mark.parametrize(
    ("given", "command"),
    [
        ({}, "report"),
        ({"OMPI_COMM_WORLD_SIZE": "1", "PMI_SIZE": "x"}, "train"),
        ({**BY_HAND, "OMPI_COMM_WORLD_SIZE": "2"}, "train"),  # mpirun, and the variables derived from its own
        ({**SRUN_SETS, "PMI_SIZE": "4"}, "evaluate"),  # srun --mpi=pmi2
        (TORCHRUN_SETS, "train"),
    ],
)
def test_processes_that_a_command_knows_are_not(given, command, variables):
    variables(given)
    refuse_several_processes(command)
    assert variables() == given


def test_command_that_is_one_process_forgets_a_place_among_others(variables):
    variables(BY_HAND)
    refuse_several_processes("compare")
    assert variables() == {}


@pytest.mark.parametrize(
    ("given", "devices", "num_nodes", "message"),
    [
        (
            SRUN_SETS,
            1,
            1,
            "srun has started 4 processes on 2 nodes; .* give trainer.devices=2 trainer.num_nodes=2",
        ),
        (SRUN_SETS, 4, 1, "srun .* give trainer.devices=2 trainer.num_nodes=2"),
        (
            TORCHRUN_SETS,
            1,
            1,
            "torchrun has started 2 processes; .* give trainer.devices=2 trainer.num_nodes=1",
        ),
        ({**TORCHRUN_SETS, "WORLD_SIZE": "3"}, 1, 2, "give trainer.devices=3 trainer.num_nodes=1"),
        (BY_HAND, 1, 1, "LOCAL_RANK=1: expected a number below trainer.devices=1; .*unset LOCAL_RANK"),
        (
            {"MASTER_ADDR": "n1"},
            1,
            2,
            r"trainer.num_nodes=2: the index of this node is unknown .*\(NODE_RANK, MASTER_PORT not set\)",
        ),
    ],
)
def test_other_numbers_of_processes_than_the_config_asks_for_are_reported(
    given, devices, num_nodes, message, variables
):
    variables(given)
    with pytest.raises(LSHFMError, match=message):
        refuse_other_process_counts(devices, num_nodes)


@pytest.mark.parametrize(
    ("given", "devices", "num_nodes"),
    [
        ({}, 4, 1),
        (SRUN_SETS, [0, 1], 2),
        (SRUN_SETS, "0,1", 2),
        (SRUN_SETS, "auto", 2),
        (SRUN_SETS, -1, 2),
        (TORCHRUN_SETS, 2, 1),
        (TORCHRUN_SETS, 1, 2),
        (BY_HAND, 2, 1),
        ({"NODE_RANK": "1", "MASTER_ADDR": "n1", "MASTER_PORT": "29500"}, 2, 2),
    ],
)
def test_agreeing_numbers_of_processes_are_not_reported(given, devices, num_nodes, variables):
    variables(given)
    refuse_other_process_counts(devices, num_nodes)
