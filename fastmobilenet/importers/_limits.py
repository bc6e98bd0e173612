"""What sane networks stay below. A damaged file beyond these bounds could load, and then need any amount of memory
or time to run."""

from __future__ import annotations

MAX_STRIDE = 1024
MAX_DILATION = 64
MAX_WINDOW = 64
MAX_PAD = 1024

#: No tensor of a picture network is larger at the file's own size; 2**28 floats are 1 GB.
MAX_FILE_ELEMENTS = 2**28

#: Size of a network whose file leaves the picture's height and width open.
DEFAULT_SIZE = (224, 224)
