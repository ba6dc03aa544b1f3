"""Shards measured by actors of Ray: on this machine, on two nodes, and while actors are killed."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

import ratherthan as rt
from deadly import OPTIONS, go, network, noise
from turns import of_today

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
ray = pytest.importorskip("ray")
TURN = of_today(["an actor dies", "two nodes", "typed in"], 3)  # a cluster takes long to begin


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    return go(tmp_path_factory.mktemp("alone"), noise()).to_frame()


@pytest.fixture(autouse=True)
def _found_by_actors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))


@pytest.mark.skipif("an actor dies" not in TURN, reason="another day's turn")
def test_a_cluster_of_its_own_is_begun_and_ended_and_an_actor_that_dies_loses_nothing(
    tmp_path: Path, alone: pd.DataFrame
) -> None:
    (tmp_path / "deadly").mkdir()
    run = go(tmp_path / "run", noise(tmp_path / "deadly" / "once"), workers=2, engine="ray")
    assert len(list((tmp_path / "deadly").iterdir())) >= 3, "it has died, and there was another"
    pd.testing.assert_frame_equal(run.to_frame(), alone, check_exact=True)
    assert run.skipped == [("s4", "s4: damaged image")]
    assert not ray.is_initialized()


@pytest.mark.skipif("two nodes" not in TURN, reason="another day's turn")
def test_two_nodes_measure_and_one_may_go(tmp_path: Path, alone: pd.DataFrame) -> None:
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
        (tmp_path / "seen").mkdir()

        def told(done: float, total: int) -> None:
            if done == 2:
                time.sleep(10)  # the other begins meanwhile
            if done == 10:
                assert len(list((tmp_path / "seen").iterdir())) == 3, "both, and this process, which looked at an image"
                cluster.remove_node(nodes[0])

        data = noise(tmp_path / "seen" / "nobody")
        run = go(tmp_path / "run", data, engine="ray", address=cluster.address, progress=told)
        pd.testing.assert_frame_equal(run.to_frame(), alone, check_exact=True)
        assert not ray.is_initialized()
    finally:
        cluster.shutdown()


@pytest.mark.skipif("typed in" not in TURN, reason="another day's turn")
def test_what_only_this_process_knows_travels_too(tmp_path: Path, alone: pd.DataFrame) -> None:
    """Functions that were typed in."""
    typed = network().replace(forward=lambda net, x: net(x))
    run = rt.evaluate("deletion", typed, noise(), out=tmp_path / "run", workers=1, engine="ray", **OPTIONS)
    pd.testing.assert_frame_equal(run.to_frame(), alone, check_exact=True)
