import sys
from pathlib import Path

# Test files are imported by path, which leaves the folder of helpers.py off the module path.
sys.path.insert(0, str(Path(__file__).parents[1]))
