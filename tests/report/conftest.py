import sys
from pathlib import Path

# Test files are imported by path, which leaves their folder off the module path; the records are shared between them.
sys.path.insert(0, str(Path(__file__).parent))
