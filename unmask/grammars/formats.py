"""Formats of strings that are kept, such as ``date`` and ``uuid``, as regular expressions.

Every text of such an expression is valid for its format; rare spellings (leap seconds, comments in addresses) are left out. Formats that
are not listed do not constrain a string, as JSON Schema has it by default. Sources: RFC 3339 (dates and times), RFC 9562 (UUID).
"""

from __future__ import annotations

_YEAR = "[12][0-9]{3}"
_DAY = "((0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])|(0[13-9]|1[0-2])-(29|30)|(0[13578]|1[02])-31)"
_DATE = f"{_YEAR}-{_DAY}"
_TIME = r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,6})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"
_BYTE = "(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_LABEL = "[a-z0-9]{1,20}(-[a-z0-9]{1,20})?"
_HOST = rf"({_LABEL}\.){{1,3}}[a-z]{{2,6}}"

FORMATS = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f"{_DATE}T{_TIME}",
    "duration": "P([0-9]{1,3}D(T[0-9]{1,3}H([0-9]{1,3}M([0-9]{1,3}S)?)?)?|T[0-9]{1,3}(H([0-9]{1,3}M([0-9]{1,3}S)?)?|M([0-9]{1,3}S)?|S))",
    "uuid": "[0-9a-f]{8}-[0-9a-f]{4}-[1-5][0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}",
    "email": rf"[a-z0-9]{{1,20}}([._-][a-z0-9]{{1,20}}){{0,2}}@{_HOST}",
    "hostname": _HOST,
    "ipv4": rf"({_BYTE}\.){{3}}{_BYTE}",
    "ipv6": "([0-9a-f]{1,4}:){7}[0-9a-f]{1,4}",
    "uri": rf"https?://{_HOST}(/[A-Za-z0-9._~-]{{1,40}}){{0,4}}/?",
}
