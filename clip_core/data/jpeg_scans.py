"""How many passes a JPEG asks its decoder for: many of them over a large picture keep it busy for hours."""

import re

MAX_SCANS = 100  # programs write about ten; the standard's finest script for three components has a few hundred
FRAMES = frozenset({0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF})
START_OF_SCAN, END_OF_IMAGE = 0xDA, 0xD9
MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])", re.DOTALL)  # not a stuffed zero, a filler or a restart


def has_too_many_scans(data: bytes) -> bool:
    """True for a JPEG of more than MAX_SCANS scans; any other bytes are left to the decoder."""
    if not data.startswith(b"\xff\xd8"):
        return False
    at, scans, components, is_progressive = 2, 0, 0, False
    while found := MARKER.search(data, at):
        marker, at = found[1][0], found.end()
        if marker == END_OF_IMAGE:
            return False
        length = int.from_bytes(data[at : at + 2])
        if marker in FRAMES and at + 7 < len(data):
            components, is_progressive = data[at + 7], marker in (0xC2, 0xC6, 0xCA, 0xCE)
        elif marker == START_OF_SCAN and at + 2 < len(data):
            if not is_progressive and data[at + 2] == components:
                return False  # all of the picture in one scan, after which decoders stop
            scans += 1
            if scans > MAX_SCANS:
                return True
        at += length
    return False
