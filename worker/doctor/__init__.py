"""`ops doctor`: the security checklist, looked at for real. Each finding says what to do."""

from worker.doctor.finding import Finding, Severity
from worker.doctor.round import examine

__all__ = ["Finding", "Severity", "examine"]
