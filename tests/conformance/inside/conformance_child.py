"""Runs the tests of one suite and writes a line of JSON for each event: `-m conformance_child JOB`.

The job is a JSON file: modules, include and exclude (patterns of test names), events (the path to
write to), limit_s (after which the stacks of a test that still runs are shown).
"""

import faulthandler
import fnmatch
import json
import os
import signal
import sys
import time
import traceback
import unittest

# ruff: noqa: N802  (unittest names them)


class Events:
    """The event file.  Opened anew for each line: tests count open descriptors."""

    def __init__(self, path):
        self._path = path
        self._pid = os.getpid()

    def write(self, **event):
        if os.getpid() != self._pid:
            return  # a forked child that came back into the runner
        fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(fd, (json.dumps(event) + "\n").encode())
        finally:
            os.close(fd)


class Result(unittest.TestResult):
    """Writes what happens to each test."""

    def __init__(self, events, limit_s):
        super().__init__()
        self._events = events
        self._limit_s = limit_s
        self._start = 0.0
        self._failed = False

    def startTest(self, test):
        super().startTest(test)
        self._start = time.monotonic()
        self._failed = False
        self._events.write(kind="start", test=test.id())
        print(f"=== {test.id()}", file=sys.stderr, flush=True)
        faulthandler.dump_traceback_later(self._limit_s, exit=False, file=sys.__stderr__)

    def stopTest(self, test):
        faulthandler.cancel_dump_traceback_later()
        super().stopTest(test)

    def _done(self, test, outcome, detail=""):
        duration_s = round(time.monotonic() - self._start, 3)
        if detail:
            print(f"--- {outcome}: {test.id()}\n{detail}", file=sys.stderr, flush=True)
        self._events.write(
            kind="end", test=test.id(), outcome=outcome, detail=detail, duration_s=duration_s
        )

    def addSuccess(self, test):
        if not self._failed:
            self._done(test, "passed")

    def addFailure(self, test, err):
        self._done(test, "failed", self._text(err))

    def addError(self, test, err):
        self._done(test, "error", self._text(err))

    def addSkip(self, test, reason):
        self._done(test, "skipped", reason)

    def addExpectedFailure(self, test, err):
        self._done(test, "passed")

    def addUnexpectedSuccess(self, test):
        self._done(test, "failed", "unexpected success")

    def addSubTest(self, test, subtest, err):
        if err is not None:
            self._failed = True
            self._done(test, "failed", f"{subtest}\n{self._text(err)}")

    @staticmethod
    def _text(err):
        return "".join(traceback.format_exception(*err))


def flatten(suite):
    for item in suite:
        if isinstance(item, unittest.TestSuite):
            yield from flatten(item)
        else:
            yield item


def wanted(test, job):
    # What could not be loaded is always wanted: its name is not the test's.
    if test.id().startswith("unittest.loader."):
        return True
    return any(fnmatch.fnmatchcase(test.id(), p) for p in job["include"]) and not any(
        fnmatch.fnmatchcase(test.id(), p) for p in job["exclude"]
    )


def main():
    with open(sys.argv[1], encoding="utf-8") as file:
        job = json.load(file)
    faulthandler.enable(sys.__stderr__)
    # A runner in the background of a shell ignores it, and so would all its children.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    events = Events(job["events"])
    if "MPSHM_INSTALL" in os.environ and os.environ.get("MPSHM") == "off":
        import mpshm  # the variable alone installs nothing there

        mpshm.install()
    loaded = unittest.defaultTestLoader.loadTestsFromNames(job["modules"])
    tests = [test for test in flatten(loaded) if wanted(test, job)]
    events.write(kind="plan", count=len(tests))
    unittest.TestSuite(tests).run(Result(events, job["limit_s"]))
    support = sys.modules.get("test.support")
    events.write(kind="finish", altered=bool(getattr(support, "environment_altered", False)))


if __name__ == "__main__":
    sys.argv[1:] = sys.argv[1:2]
    main()
