"""`python -m mdlm` is `mdlm`."""

import sys

from mdlm.cli import main

sys.exit(main())
