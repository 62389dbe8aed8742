"""Check the numbers of invariants: `citations.py CSRC` reads invariants.h and all that cites it.

Each number is in the list once, and each cited one is in it.
"""

import re
import sys
from pathlib import Path

CITED = re.compile(r"INVARIANT\((\w+),|\b([A-Z]\d)\b(?! *[|(])")

core = Path(sys.argv[1])
listed = re.findall(r"^   ([A-Z]\d)  ", (core / "invariants.h").read_text(), re.MULTILINE)
wrong = [f"{number} is in the list twice" for number in set(listed) if listed.count(number) > 1]
for file in sorted(core.glob("*.[ch]")):
    for n, line in enumerate(file.read_text().splitlines(), 1):
        for found in CITED.finditer(line):
            number = found[1] or found[2]
            if number not in listed and number != "number":
                wrong.append(f"{file.name}:{n}: {number} is not in invariants.h")
sys.exit("\n".join(wrong) or 0)
