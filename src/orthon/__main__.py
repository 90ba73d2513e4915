"""`python -m orthon`."""

import sys

from orthon.train.cli import main

sys.exit(main())
