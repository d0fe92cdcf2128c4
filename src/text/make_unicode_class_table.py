#!/usr/bin/env python3
"""Writes unicode_class_table.inc: the class of every character from U+0080 on.

Needs the PyPI package unicodedata2==15.1.0: Unicode 15.1 is the version of llama.cpp's tables, and token ids depend on it.
Usage: python3 make_unicode_class_table.py > unicode_class_table.inc
"""
import unicodedata2

VERSION = "15.1.0"
CLASSES = {"N": 1, "L": 2, "P": 3, "M": 4, "S": 5}  # CharClass of unicode_class.h; 0 is the rest
SPACE = 6
# White_Space of PropList.txt
SPACES = {0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F, 0x205F, 0x3000}


def char_class(code):
    return SPACE if code in SPACES else CLASSES.get(unicodedata2.category(chr(code))[0], 0)


def main():
    assert unicodedata2.unidata_version == VERSION, unicodedata2.unidata_version
    entries, last = [], None
    for code in range(0x80, 0x110000):
        current = char_class(code)
        if current != last:
            entries.append(code << 3 | current)
            last = current
    print(f"// Made by make_unicode_class_table.py from Unicode {VERSION}: first code point << 3 | class, ascending.")
    line = ""
    for entry in entries:
        text = f"{entry:#x}, "
        if len(line) + len(text) > 120:
            print(line.rstrip())
            line = ""
        line += text
    print(line.rstrip())


main()
