"""A time stamp's certificates, put into the order that DER prescribes.

They are a SET OF, so their order means nothing and no signature covers it, but some authorities (DigiCert; all that run
`openssl ts` with a chain) send them unsorted, and strict parsers refuse that. Sorting changes no length.

    TimeStampResp = SEQUENCE {status, ContentInfo {type, [0] SignedData {version, digests, content, [0] certificates}}}

Sources: RFC 3161, section 2.4.2; RFC 5652, section 5.1; X.690, section 11.6.
"""

from typing import NamedTuple

_CONSTRUCTED_0 = 0xA0


class _Element(NamedTuple):
    tag: int
    start: int  #: of the header
    content: int
    end: int


def with_sorted_certificates(response: bytes) -> bytes:
    """The same time-stamp response with its certificates in order; anything else comes back as it is."""
    try:
        content_info = _children(response, _whole(response))[1]
        signed_data = _children(response, _children(response, content_info)[1])[0]
        certificates = _children(response, signed_data)[3]
        if certificates.tag != _CONSTRUCTED_0:
            return response
        encoded = sorted(response[element.start : element.end] for element in _children(response, certificates))
    except (IndexError, ValueError):
        return response
    return response[: certificates.content] + b"".join(encoded) + response[certificates.end :]


def _whole(data: bytes) -> _Element:
    return _element(data, 0, len(data))


def _children(data: bytes, parent: _Element) -> list[_Element]:
    children, position = [], parent.content
    while position < parent.end:
        children.append(_element(data, position, parent.end))
        position = children[-1].end
    return children


def _element(data: bytes, start: int, limit: int) -> _Element:
    """One tag, length and value; only the definite lengths of DER."""
    length, content = data[start + 1], start + 2
    if length & 0x80:
        size = length & 0x7F
        if not 1 <= size <= 4:
            raise ValueError("not a DER length")
        length = int.from_bytes(data[content : content + size], "big")
        content += size
    if content + length > limit:
        raise ValueError("longer than what holds it")
    return _Element(data[start], start, content, content + length)
