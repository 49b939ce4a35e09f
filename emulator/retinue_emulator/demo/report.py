"""Temporary."""
from dataclasses import dataclass
from pathlib import Path
@dataclass
class RunRecord:
    options_speed: float
    load: str
    outcome: object
    checks: tuple
    records: tuple
    timeline: object
    reference: str
    ready_seconds: float
    wall_seconds: float
def write_report(record, folder: Path) -> Path:
    import pickle
    folder.mkdir(exist_ok=True); (folder/'run.pickle').write_bytes(pickle.dumps(record)); return folder
