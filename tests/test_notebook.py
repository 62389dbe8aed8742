"""Functions of a notebook run in processes under each start method, by our names and by stock's."""

from __future__ import annotations

import json

import pytest

import mpshm
from kit.programs import run_python

for name in ("nbclient", "ipykernel"):
    pytest.importorskip(name, reason="needs nbclient and ipykernel, which bring 130 MB")

LIMIT_S = 120
"""A notebook that runs longer hangs, however busy the machine is."""

# In a process of its own, for the client keeps descriptors and threads.
RUNNER = """
import json, nbclient, nbformat, sys
cells = [nbformat.v4.new_code_cell(text) for text in json.load(sys.stdin)]
notebook = nbformat.v4.new_notebook(cells=cells)
nbclient.NotebookClient(notebook, kernel_name="python3").execute()
print(json.dumps(["".join(o.get("text", "") for o in cell.outputs) for cell in notebook.cells]))
"""

IMPORTS = {
    "mpshm": "import mpshm as mp; from mpshm import ProcessPoolExecutor",
    "install": """
import multiprocessing as mp, mpshm
from concurrent.futures import ProcessPoolExecutor
mpshm.install()""",
}

FIRST = """
mp.set_start_method({method!r}, force=True)
factor = 2

class Point:
    def __init__(self, x):
        self.x = x

def twice(x):
    return factor * x

def work(point):
    return Point(twice(point.x))

def put(queue, function, *args):
    queue.put(function(*args))
"""
ROADS = {
    "Process": """
queue = mp.Queue()
process = mp.Process(target=put, args=(queue, work, Point(1)))
process.start(); print(queue.get().x); process.join()
print(process.exitcode)
""",
    "Process of a lambda": """
process = mp.Process(target=lambda: queue.put(twice(2)))
process.start(); print(queue.get()); process.join()
print(process.exitcode)
""",
    "a context's Process": """
process = mp.get_context({method!r}).Process(target=lambda: queue.put(twice(3)))
process.start(); print(queue.get()); process.join()
""",
    "Pool": """
with mp.Pool(2) as pool:
    print([got.x for got in pool.map(work, [Point(4), Point(5)])])
    print(pool.map(lambda x: twice(x), [6]))
""",
    "an executor": """
with ProcessPoolExecutor(1) as pool:
    print(pool.submit(work, Point(7)).result().x, pool.submit(lambda: twice(8)).result())
""",
    "Manager": """
with mp.Manager() as manager:
    shared = manager.list([Point(9)])
    print(type(shared[0]) is Point, shared[0].x)
""",
}
FOUND = ["2\n0\n", "4\n0\n", "6\n", "[8, 10]\n[12]\n", "14 16\n", "True 9\n"]


@pytest.mark.parametrize("method", mpshm.get_all_start_methods())
@pytest.mark.parametrize("how", IMPORTS)
def test_functions_of_a_notebook_run_in_children(how: str, method: str) -> None:
    cells = [IMPORTS[how] + FIRST, *ROADS.values()]
    texts = [text.replace("{method!r}", repr(method)) for text in cells]
    done = run_python("-c", RUNNER, input=json.dumps(texts), limit_s=LIMIT_S)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == ["", *FOUND]
