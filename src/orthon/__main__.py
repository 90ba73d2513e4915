"""`python -m orthon`."""

import sys

from orthon.train.commands.main import main

sys.exit(main())
