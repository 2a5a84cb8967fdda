"""Settings: one file, `remediator.yaml`, read once and frozen. Imports nothing but the pure contract.

`model` holds what may be written, `load` puts file and environment together, `faults` words what is wrong with them, `reference`
writes the JSON Schema and the reference page.
"""

from remediator.settings.load import Loaded, load_settings, read_settings, reloadable_changes
from remediator.settings.model import Endpoint, Limits, ListenSettings, LogSettings, PackSettings, Settings, StoreSettings, TlsSettings
from remediator.settings.people import Contact, EscalationPolicy, IdentitySettings, Role, Severity

__all__ = [
    "Contact",
    "Endpoint",
    "EscalationPolicy",
    "IdentitySettings",
    "Limits",
    "ListenSettings",
    "Loaded",
    "LogSettings",
    "PackSettings",
    "Role",
    "Settings",
    "Severity",
    "StoreSettings",
    "TlsSettings",
    "load_settings",
    "read_settings",
    "reloadable_changes",
]
