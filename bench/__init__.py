"""Benchmarks of mpshm against what else one could use, by ratios from interleaved runs.

Floors, top to bottom; imports go down only:

    run, __main__         the command: plans, has children run, writes the JSON and the report
    report                the report of one JSON file, and nothing else
    tables | plot         Markdown | the picture, from the report's table
    targets               what was promised, and the verdicts
    cases | figures       which cases run, how often | ratios from results
    fresh | machine       processes for children | versions, CPU, commit
    -- inside a fresh process --
    child                 one adapter, one case, one JSON object
    limits                idle processes, crowds, calls that once stood in others' way
    measure | memory      seconds per message | peak bytes
    queues                crews on one queue, and its creation
    stage | crew          one adapter set up for a case | forked workers and the lines to them
    adapters              what carries it
    workloads             what is sent
    protocol              Case, Adapter: the words all the others share
"""
