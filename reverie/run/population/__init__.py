"""What each individual of a population earns in the real environment, here, in processes, or on a Ray cluster.

::

    with Processes(Recipe("world_models", config, env), workers=2) as population:
        population.set_world(agent.modules.state_dict())                  # V and M, learned before
        results = population.evaluate(evolution.ask(), jobs, on_result)   # thetas "P n", rollouts of each

A job is one rollout. Its seed decides the episode and the noise that z is sampled with, so its result follows from
the individual's numbers and the seed, whoever plays it and however often it is begun again.
"""

from reverie.run.population.base import Job, Population, Recipe, Result
from reverie.run.population.cluster import Cluster
from reverie.run.population.journal import Journal
from reverie.run.population.player import Here
from reverie.run.population.processes import Processes

__all__ = ["Cluster", "Here", "Job", "Journal", "Population", "Processes", "Recipe", "Result"]
