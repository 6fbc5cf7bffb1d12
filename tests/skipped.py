"""Prints which tests passed without having run, each with its reason, and how many they are.

usage: skipped.py REPORT [WORD]...

REPORT is what nextest writes of its tests; a test that does not run prints `skipped: REASON`. Ends with 1 where a reason
has none of the words in it, upper and lower case alike.
"""

import re
import sys
import xml.etree.ElementTree as xml

report, *words = sys.argv[1:]
skipped = []
for case in xml.parse(report).iter("testcase"):
    printed = "\n".join(case.findtext(part) or "" for part in ("system-out", "system-err"))
    for reason in re.findall(r"^skipped: (.+)$", printed, re.MULTILINE):
        skipped.append((f"{case.get('classname')} {case.get('name')}", reason))

for name, reason in skipped:
    print(f"skipped: {name}: {reason}")
unexpected = [reason for _, reason in skipped if not any(word.lower() in reason.lower() for word in words)]
print(f"{len(skipped)} skipped, {len(unexpected)} of them without being left out by COMFY_FARM_TEST_WITHOUT")
sys.exit(1 if unexpected else 0)
