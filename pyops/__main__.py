from .testing import exit_with
from .tools.cli import main

exit_with(main())
