"""`python -m mdlm` is `mdlm`."""

import sys

from mdlm.cli.main import main

sys.exit(main())
