"""Which addresses are this machine's alone.

A web page can have its own host name point at 127.0.0.1 and then read what a server there says.
What it cannot do is send another name than its own in the Host header.
"""

import ipaddress
import re

HOST = re.compile(r"(\[[0-9a-f:.]{2,45}\]|[0-9a-z.]{1,15})(?::[0-9]{0,5})?", re.IGNORECASE)


def names_this_machine(host):
    """Whether a Host header is localhost or an address of this machine alone, with any port."""
    found = HOST.fullmatch(host)
    if found is None:
        return False
    name = found[1].lower()
    return name in ("localhost", "localhost.") or is_local(name.strip("[]"))


def is_local(address):
    """Whether an IP address, as text, is that of this machine alone."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False
