import numpy as np
import numpy.typing as npt

MAX_SIDE: int

def resize(
    src: npt.NDArray[np.uint8],
    oh: int,
    ow: int,
    filter: str,
    crop: tuple[int, int, int, int] | None = None,
    vertical_first: bool = False,
) -> npt.NDArray[np.uint8]: ...
