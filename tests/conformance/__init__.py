"""Runs CPython's own test suites over mpshm, with the stock module as the oracle.

The floors, top to bottom; imports go down only:

    every        the same with several interpreters, each with mpshm from the sdist
    __main__     the command line: suites, modes, progress, exit code
    compare      what is a regression, what is flaky, what is excused
    measure      one suite in one mode, in child processes with time limits
    room         a throwaway virtual environment and the copies of the suites in it
    suites | rewrite | proof      which tests there are | `multiprocessing` -> `mpshm` in sources |
                                  reading what the processes counted
    modes        stock, or swapped in some way over some road
    inside/      modules that run inside the tested interpreter, installed in the room
"""
