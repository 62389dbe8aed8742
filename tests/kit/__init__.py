"""Helpers that the tests, conformance/, stress/ and clients/ share.  pytest collects nothing here.

    processes | leaks      kill and inspect other processes | what a test or a run leaves behind
    programs  | waiting    run a child interpreter with a time limit | wait for a condition
    threads   | signals    calls in other threads | signal handlers for the length of a block
    road                   what a test does and expects with and without shared memory
    exits     | crowds     holds a process back at its very end | runs processes beside a block
    stepping | namespaces  stops a child between two changes | puts one in another pid namespace
    queues | listeners     helpers for tests of queues | connects a Listener and a Client
    growing | counts       messages for queues that grow | numbers that processes have in common
    arrays                 arrays of every kind, compared with stock
    seccomp                makes memfd_create fail in a child, as container runtimes do

Nothing here imports a test.  processes, leaks and programs do not import mpshm either: clients/
and stress/ use them for runs in which stock must not have seen it.
"""
