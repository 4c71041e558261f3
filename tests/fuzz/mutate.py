"""Mutations of a file: what damage, strange programs and hostile hands do to it."""

import gzip
import re
import zlib

# Numbers at which sizes, signs and types turn over, and words that no header expects.
WORDS = [b"0", b"-1", b"1", b"2", b"65536", b"2147483648", b"4294967295", b"99999999999999999999", b"1e308", b"nan"]
WORDS += [b"inf", b"1e-300", b"", b" ", b"x" * 1200, b"%s%n", b"none", b"LIST", b"../a", b"\0", b"\xff\xfe", b"\n\n"]
INTEGERS = [0, 1, 2, 3, 127, 128, 255, 256, 32767, 32768, 65535, 1 << 20, (1 << 31) - 1, 1 << 31, (1 << 32) - 1]
_WORD = re.compile(rb"[-+.\w]+")
_HEADER = 1024


def mutate(content, random):
    """``content`` with one to four changes; packed content is changed inside as often as outside."""
    if content[:2] == b"\x1f\x8b" and random.random() < 0.6:
        return gzip.compress(mutate(gzip.decompress(content), random), 1, mtime=0)
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        content = random.choice(_CHANGES)(bytearray(content), random)
    return bytes(content)


def _place(content, random):
    """Mostly in the header, where changes tell."""
    return random.randrange(max(min(len(content), _HEADER) if random.random() < 0.8 else len(content), 1))


def _bit(content, random):
    if content:
        content[_place(content, random)] ^= 1 << random.randrange(8)
    return content


def _bytes(content, random):
    at, number = _place(content, random), random.choice((1, 2, 4, 8, 64))
    content[at : at + number] = random.randbytes(number)
    return content


def _integer(content, random):
    at, size = _place(content, random), random.choice((1, 2, 4, 8))
    number = random.choice(INTEGERS) % (1 << 8 * size)
    content[at : at + size] = number.to_bytes(size, random.choice(("little", "big")))
    return content


def _word(content, random):
    words = list(_WORD.finditer(content, 0, 4 * _HEADER))
    if words:
        found = random.choice(words)
        content[found.start() : found.end()] = random.choice(WORDS)
    return content


def _line(content, random):
    """A line of a text header left out, doubled or moved."""
    head, rest = content[: 2 * _HEADER], content[2 * _HEADER :]
    lines = head.split(b"\n")
    at = random.randrange(len(lines))
    line = lines.pop(at)
    for _ in range(random.choice((0, 1, 2, 50))):
        lines.insert(random.randrange(len(lines) + 1), line)
    return bytearray(b"\n".join(lines)) + rest


def _cut(content, random):
    return content[: random.choice((_place(content, random), max(len(content) - random.randrange(1, 99), 0)))]


def _insert(content, random):
    at = _place(content, random)
    return content[:at] + random.choice([*WORDS, random.randbytes(9)]) + content[at:]


def _remove(content, random):
    at = _place(content, random)
    del content[at : at + random.choice((1, 2, 4, 16))]
    return content


def _repeat(content, random):
    at = _place(content, random)
    piece = content[at : at + random.choice((4, 16, 64))]
    return content[:at] + piece * random.choice((2, 3, 200)) + content[at:]


def _append(content, random):
    return content + random.choice((b"behind", bytes(5000), bytes(content), zlib.compress(bytes(1 << 20))))


_CHANGES = [_bit, _bytes, _integer, _integer, _word, _word, _line, _cut, _insert, _remove, _repeat, _append]
