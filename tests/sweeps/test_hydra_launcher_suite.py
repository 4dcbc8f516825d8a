"""Hydra's own tests of launchers pass with ours, for task functions that are not burgersgd's."""

from __future__ import annotations

import pytest
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.test_utils.launcher_common_tests import BatchedSweeperTestSuite, IntegrationTestSuite, LauncherTestSuite

from burgersgd.sweeps.launcher import FleetLauncher, FleetSweeper


def test_hydra_finds_launcher_and_sweeper() -> None:
    assert any(issubclass(plugin, FleetLauncher) for plugin in Plugins.instance().discover(Launcher))
    assert any(issubclass(plugin, FleetSweeper) for plugin in Plugins.instance().discover(Sweeper))


CHDIR = "hydra.job.chdir=true"  # which the suite expects to be the default, as it was before Hydra 1.2


@pytest.mark.parametrize("launcher_name", ["fleet"])
@pytest.mark.parametrize("overrides", [[CHDIR], [CHDIR, "hydra/sweeper=fleet"]], ids=["basic sweeper", "our sweeper"])
class TestFleetLauncher(LauncherTestSuite):
    pass


@pytest.mark.parametrize(("launcher_name", "overrides"), [("fleet", [CHDIR, "hydra.sweeper.max_batch_size=2"])])
class TestFleetLauncherInBatches(BatchedSweeperTestSuite):
    pass


@pytest.mark.parametrize(("task_launcher_cfg", "extra_flags"), [({}, ["-m", "hydra/launcher=fleet"])])
class TestFleetLauncherInAProgram(IntegrationTestSuite):
    pass
