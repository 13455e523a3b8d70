"""What run.sh starts: PYTHONPATH names the repository and its tools."""

import sys

from batch.command_line import main

sys.exit(main())
