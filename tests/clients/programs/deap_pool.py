"""DEAP with toolbox.map = pool.map."""

import hashlib
import itertools
import multiprocessing
import random

from deap import algorithms, base, creator, tools

creator.create("Fitness", base.Fitness, weights=(1.0,))
creator.create("Individual", list, fitness=creator.Fitness)


def evaluate(individual):
    return (sum(a != b for a, b in itertools.pairwise(individual)),)


toolbox = base.Toolbox()
toolbox.register("bit", random.randint, 0, 1)
toolbox.register("individual", tools.initRepeat, creator.Individual, toolbox.bit, 200)
toolbox.register("population", tools.initRepeat, list, toolbox.individual)
toolbox.register("evaluate", evaluate)
toolbox.register("mate", tools.cxTwoPoint)
toolbox.register("mutate", tools.mutFlipBit, indpb=0.02)
toolbox.register("select", tools.selTournament, tournsize=3)


def main():
    random.seed(64)
    with multiprocessing.Pool(2) as pool:
        toolbox.register("map", pool.map)
        population, _ = algorithms.eaSimple(
            toolbox.population(400), toolbox, 0.5, 0.2, 120, verbose=False
        )
    print("digest:", hashlib.sha256(repr(population).encode()).hexdigest())


if __name__ == "__main__":
    main()
