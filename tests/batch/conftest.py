import sys
from pathlib import Path

# Test files are imported by path, which leaves the folders of helpers off the module path.
sys.path.insert(0, str(Path(__file__).parents[1] / "chaos"))
