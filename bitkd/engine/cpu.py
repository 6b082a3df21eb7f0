"""What Linux tells about this machine's processor. No torch."""

from pathlib import Path

INFO = Path("/proc/cpuinfo")


def read_cpu_fields() -> dict[str, str]:
    """The fields of the first core, such as "model name", by their names; empty on other systems."""
    try:
        lines = INFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    fields: dict[str, str] = {}
    for name, _, value in (line.partition(":") for line in lines):
        fields.setdefault(name.strip(), value.strip())
    return fields


def read_cpu_flags() -> set[str]:
    """The names that Linux gives to the processor's features; empty on other systems."""
    fields = read_cpu_fields()
    return set((fields.get("flags") or fields.get("Features") or "").split())
