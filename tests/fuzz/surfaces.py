"""All of them."""

from fuzz.api import Api
from fuzz.commands import Commands
from fuzz.compressions import Compressions
from fuzz.configs import Configs
from fuzz.files import Indices, Safetensors, TorchFiles
from fuzz.images import Images
from fuzz.property import Surface
from fuzz.rows import Rows
from fuzz.runs import Runs
from fuzz.scores import Scores
from fuzz.tokenizers import Tokenizers

_ALL = (
    Compressions(),
    Rows(),
    Images(),
    Configs(),
    Safetensors(),
    Indices(),
    TorchFiles(),
    Api(),
    Tokenizers(),
    Runs(),
    Commands(),
    Scores(),
)
SURFACES: dict[str, Surface] = {surface.name: surface for surface in _ALL}
