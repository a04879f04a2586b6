"""Addresses of the web that lead to the same page, as one string."""

import re

# Parameters that follow readers and do not change the page.
_TRACKING = re.compile(
    r"(?:utm_[^=]*|gclid|dclid|gbraid|wbraid|fbclid|msclkid|twclid|yclid|igshid|mc_cid|mc_eid|_ga|_gl|_hsenc|_hsmi"
    r"|mkt_tok|vero_id|oly_enc_id|oly_anon_id|wickedid|s_cid|ref_src|spm)(?:=|$)",
    re.IGNORECASE,
)
_SCHEME = re.compile(r"(?:[A-Za-z][A-Za-z0-9+.-]*:)?//")
_OPAQUE = re.compile(r"(?:about|blob|data|javascript|magnet|mailto|news|sms|tel|urn):", re.IGNORECASE)
_PATH_END = re.compile(r"[/\s]+$")
_HOST_END = re.compile(r"[.:\s]+$")
_PORT = re.compile(r"[.:\s]*:(\d*)\s*$")


def normalize_url(url: str, *, drop_tracking: bool = True) -> str:
    """Leave out what does not decide which page an address leads to.

    The scheme, user and password, `www.`, the port when it is 80 or 443, the fragment, slashes at the end of
    the path, an empty query; with `drop_tracking` the parameters that follow readers (`utm_source`, `gclid`,
    `fbclid`, ...). The host is put into lower case; path and query keep theirs, and parameters their order.
    What is no address of a host (`mailto:`, `data:`), or has nothing left, stays as it is.

    Args:
        url: an address, with a scheme or without; white space at both ends is cut off.
        drop_tracking: leave those parameters out.

    Raises:
        TypeError: `url` is no str.

    Example:
        >>> normalize_url("https://www.Example.org:443/a/?utm_source=x&id=7#top")
        'example.org/a?id=7'
    """
    if not isinstance(url, str):
        raise TypeError(f"url must be a str, got {type(url).__name__}")
    url = url.strip()
    if _OPAQUE.match(url):
        return url
    scheme = _SCHEME.match(url)
    rest = (url[scheme.end() :] if scheme else url).partition("#")[0]
    address, _, query = rest.partition("?")
    host, slash, path = address.partition("/")
    host = host.rpartition("@")[2].lower()
    port = ""
    while found := _PORT.search(host):
        host = host[: found.start()]
        if found[1] not in ("", "80", "443"):
            port = ":" + found[1]
            break
    host = _HOST_END.sub("", host)
    if not host:
        return url
    while host.startswith("www.") and "." in host[4:]:
        host = host[4:]
    host += port
    parameters = [p for p in query.split("&") if p and not (drop_tracking and _TRACKING.match(p))]
    path = _PATH_END.sub("", slash + path)
    result = host + path + ("?" + "&".join(parameters) if parameters else "")
    return result.strip() or url
