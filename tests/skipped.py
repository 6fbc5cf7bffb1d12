"""Prints which tests passed without having run, each with its reason, and how many they are.

usage: skipped.py REPORT

REPORT is what nextest writes of its tests; a test that does not run prints `skipped: REASON`.
"""

import re
import sys
import xml.etree.ElementTree as xml

skipped = 0
for case in xml.parse(sys.argv[1]).iter("testcase"):
    printed = "\n".join(case.findtext(part) or "" for part in ("system-out", "system-err"))
    for reason in re.findall(r"^skipped: (.+)$", printed, re.MULTILINE):
        skipped += 1
        print(f"skipped: {case.get('classname')} {case.get('name')}: {reason}")
print(f"{skipped} tests passed without having run")
