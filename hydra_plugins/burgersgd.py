"""Where Hydra looks for plugins: it takes a launcher or a sweeper only from a module of this package."""

import burgersgd.sweeps.cluster as cluster
import burgersgd.sweeps.launcher as ours


class FleetLauncher(ours.FleetLauncher):
    """hydra/launcher=fleet."""


class FleetSweeper(ours.FleetSweeper):
    """hydra/sweeper=fleet."""


class FleetRayLauncher(cluster.FleetRayLauncher):
    """hydra/launcher=fleet_ray."""


class FleetSlurmLauncher(cluster.FleetSlurmLauncher):
    """hydra/launcher=fleet_slurm."""
