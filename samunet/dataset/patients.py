"""Which cases are of one patient, told from their names: sessions, visits, times, sides and frames."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence

MIN_PLAIN_GROUPS = 5  # fewer are more likely a name's first part, such as train_ and test_, unless they are numbered
_NUMBERED = re.compile(r"(?:.*\D)?(\d{1,3})[a-z]?", re.IGNORECASE)  # P1, case003

_END = r"(?=[_\-. ]|$)"
_NUMBER = r"[_\-. ]?\d+[a-z]?"
_WORDS = (
    r"(?:ses|sess|session|visit|timepoint|time[_\-. ]?point|tp|time|day|week|month|year|frame|phase|"
    r"follow[_\-. ]?up|fu)"
)
_SIDES = r"(?:left|right)"
# What says of itself that it is one of several of a patient. Stripped from any place but the first.
_CLEAR = re.compile(
    rf"(?:[_\-. ]|(?<=\d)(?=[a-z])){_WORDS}{_NUMBER}{_END}"
    rf"|[_\-. ](?:baseline|follow[_\-. ]?up|pre[_\-]?op|post[_\-]?op|{_SIDES}){_END}"
    rf"|(?<=\d){_SIDES}{_END}",
    re.IGNORECASE,
)
_FIRST_SIDE = re.compile(rf"^{_SIDES}[_\-. ](?=.)", re.IGNORECASE)
# The same, but short enough to mean something else: only after a name with a number in it, the patient's.
_SHORT = re.compile(
    rf"[_\-. ](?:[tvdwmy]\d+|(?:scan|run)[_\-]?\d+|\d+(?:d|w|m|mo|y)|l|r|od|os|ed|es|bl|fu|pre|post){_END}"
    rf"|[_\-. ](?:19|20)\d\d([_\-.]?)(?:0[1-9]|1[0-2])\1(?:0[1-9]|[12]\d|3[01]){_END}"
    rf"|(?<=\d)[lr]$|(?<=\d)T\d+$",
    re.IGNORECASE,
)
_BIDS = re.compile(r"^(sub-[A-Za-z0-9]+)")


def patients(case_names: Sequence[str], groups: Mapping[str, str] | None) -> Mapping[str, str] | None:
    """Case to patient: as given, else as far as names tell; None where every case stands for itself.

    Args:
        case_names: All training cases.
        groups: Of dataset.json. None leaves it to the names; empty says that cases have nothing to do with each other.
    """
    return infer_groups(case_names) if groups is None else groups or None


def infer_groups(case_names: Sequence[str]) -> dict[str, str] | None:
    """Tell patients from names.

    A name's session, visit, time point, date, side or frame is taken off: ``sub-07_ses-2`` is of ``sub-07``,
    ``P12_T0`` of ``P12``, ``case07_left`` of ``case07``. Where no two names become one by this, and all are of the form
    ``<patient>_<frame>``, the frame is what follows the last underscore.

    Returns:
        Case to patient; None unless some have more than one case, and there are two patients or more. (Of the form
        ``<patient>_<frame>`` five or more, unless patients are numbered as ``P1_2`` is: ``hippocampus_001`` gives one
        patient, which no dataset means.)
    """
    marked = {name: _patient(name) for name in case_names}
    sizes = Counter(marked.values())
    if len(sizes) > 1 and max(sizes.values()) > 1:
        return marked
    if not all("_" in name for name in case_names):
        return None
    groups = {name: name.rsplit("_", 1)[0] for name in case_names}
    sizes = Counter(groups.values())
    numbered = [match for match in map(_NUMBERED.fullmatch, sizes) if match]
    # Numbers that all are higher may be years, as in BraTS20 and BraTS21.
    few = len(sizes) > 1 and len(numbered) == len(sizes) and min(int(match[1]) for match in numbered) < 10
    enough = len(sizes) >= MIN_PLAIN_GROUPS or few
    return groups if enough and max(sizes.values()) > 1 else None


def _patient(name: str) -> str:
    bids = _BIDS.match(name)
    if bids:
        return _CLEAR.sub("", bids[1]) or bids[1]
    rest = _FIRST_SIDE.sub("", name)
    rest = _CLEAR.sub("", rest) or rest
    while (match := _SHORT.search(rest)) and re.search(r"\d", rest[: match.start()]):
        rest = rest[: match.start()] + rest[match.end() :]
    return rest
