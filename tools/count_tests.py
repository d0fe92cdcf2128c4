#!/usr/bin/env python3
"""Prints "PASSED FAILED SKIPPED" of a JUnit report as ctest --output-junit writes it. usage: count_tests.py REPORT"""

import sys
import xml.etree.ElementTree as tree

try:
    suite = tree.parse(sys.argv[1]).getroot()
except (IndexError, OSError, tree.ParseError) as error:
    sys.exit(f"count_tests: {error}")
failed = skipped = passed = 0
for case in suite.iter("testcase"):
    if case.find("failure") is not None or case.find("error") is not None or case.get("status") == "fail":
        failed += 1
        print(f"FAILED: {case.get('name')}", file=sys.stderr)
    elif case.find("skipped") is not None or case.get("status") in ("notrun", "disabled"):
        # ctest also reports as "notrun" what it could not start: that is a failure, a skip says so itself.
        message = case.find("skipped").get("message", "") if case.find("skipped") is not None else ""
        if "SKIP" in message.upper() or case.get("status") == "disabled":
            skipped += 1
        else:
            failed += 1
            print(f"FAILED: {case.get('name')} ({message or 'not run'})", file=sys.stderr)
    else:
        passed += 1
print(passed, failed, skipped)
