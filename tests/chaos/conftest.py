import sys
from pathlib import Path

# Test files are imported by path, which leaves their folder off the module path.
sys.path.insert(0, str(Path(__file__).parent))
