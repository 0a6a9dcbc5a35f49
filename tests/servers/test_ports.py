"""Which ports programs are given that can't choose their own."""

from __future__ import annotations

import socket
from itertools import islice

from tests.servers.ports import LOWEST, PARTS, free_port, offered

EPHEMERAL = 32_768


def test_no_port_is_one_that_the_kernel_gives_to_connections() -> None:
    ports = list(islice(offered(EPHEMERAL, worker=PARTS - 1, start=12_345), 5_000))
    assert LOWEST <= min(ports) <= max(ports) < EPHEMERAL


def test_workers_share_no_port() -> None:
    parts = [set(islice(offered(EPHEMERAL, worker=each, start=7), 5_000)) for each in range(PARTS)]
    assert len(set.union(*parts)) == sum(map(len, parts))


def test_each_port_is_given_once() -> None:
    assert len({free_port() for _ in range(200)}) == 200


def test_a_port_in_use_is_left_out() -> None:
    following = free_port()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", following + 1))
        assert free_port() != following + 1


def test_a_machine_whose_kernel_gives_away_all_ports_chooses_itself() -> None:
    assert next(offered(1_024, worker=0, start=5)) == 0
